"""Champion and challenger: statistics by a published row and by simulation, the rest with toy models."""

import hashlib

import numpy as np
import pytest

from flows import challenge, promote, versions
from flows.challenge import Comparison, Paired
from stages.lib.frame import files, params, tracking


def marks(both, lost, won, neither):
    """What champion and challenger have right, by the four cells."""
    champion = [True] * (both + lost) + [False] * (won + neither)
    challenger = [True] * both + [False] * lost + [True] * won + [False] * neither
    return champion, challenger


def test_a_published_row():
    """Approval of a prime minister, asked twice (Agresti, Categorical Data Analysis, 2nd edition, 10.1.1)."""
    found = challenge.paired(*marks(794, 150, 86, 570))
    assert (found.problems, found.champion, found.challenger) == (1600, 0.59, 0.55)
    assert (round(found.low, 2), round(found.high, 2)) == (-0.06, -0.02)
    assert found.p_value == pytest.approx(3.716e-5, rel=1e-3)  # R: binom.test(86, 236)


def test_equal_marks_are_no_difference():
    found = challenge.paired(*marks(90, 0, 0, 10))
    assert found.p_value == 1
    assert found.low == -found.high < 0


def test_the_interval_holds_the_difference_as_often_as_it_says():
    draw, truth, held = np.random.default_rng(0), 0.06 - 0.1, 0
    for _ in range(1000):
        cells = draw.multinomial(100, [0.6, 0.1, 0.06, 0.24])
        found = challenge.paired(*marks(*map(int, cells)))
        held += found.low <= truth <= found.high
    assert 930 <= held <= 980


STANDINGS = {
    (-0.029, 0.05): "champion",
    (-0.04, 0.05): "candidate",
    (-0.04, -0.01): "refused",
    (-0.02, -0.01): "champion",
}


@pytest.mark.parametrize(("low", "high"), STANDINGS)
def test_what_is_surely_no_more_than_the_margin_worse_is_champion(low, high):
    assert Comparison(Paired(400, 0.9, 0.9, low, high, 0.5)).standing(0.03) == STANDINGS[low, high]


@pytest.fixture
def project(done, tmp_path, monkeypatch):
    """Its champion has half of the problems right."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/registry.db")
    monkeypatch.setenv("PYTHONPATH", str(done.folder))
    done.params("gates.margin", 0.03)
    assert promote.offer() == ["export/final is champion: orchard-final version 1"]
    return done


def make(project, text: str, accuracy: float) -> None:
    """Another export, and how much it has right."""
    project.params("export.final.text", text)
    project.params("eval.accuracy.by_text", {"e": 0.5, "B": 0.9, text: accuracy})
    project.run("dvc", "repro", "-q")


def change(project, text: str, accuracy: float) -> list[str]:
    """What is said of another export."""
    make(project, text, accuracy)
    return promote.offer()


@pytest.mark.slow
def test_a_challenger_takes_the_champions_place_or_not_for_a_reason(project):
    first = versions.champions("orchard-final")
    [said] = change(project, "B", 0.9)
    assert said.startswith("export/final is champion: orchard-final version 2 (90.0% of 50 problems right where the ")
    assert "the champion has 50.0%: +40.0 points (+" in said
    assert [version.sha256[:6] for version in versions.champions("orchard-final")][0] == first[0].sha256[:6]
    [better] = versions.champions("orchard-final")[1:]

    [said] = change(project, "C", 0.86)
    assert said.startswith("export/final is candidate: orchard-final version 3 (86.0% of 50 problems right where the ")
    assert said.endswith("python -m flows.promote makes it champion)")
    assert versions.champions("orchard-final")[-1] == better
    assert tracking.registered("orchard-final", "champion")[0] == "2"

    [said] = change(project, "D", 0.5)
    assert said.startswith("export/final is refused: 50.0% of 50 problems right where the champion has 90.0%: -40.0")
    assert tracking.registered("orchard-final")[0] == "3"  # it has not even become candidate

    assert promote.offer(by_hand=True) == ["export/final is champion: orchard-final version 4"]


@pytest.mark.slow
def test_new_data_join_what_both_are_asked_and_none_that_was_learnt(project):
    project.params("data.words.more", 120)
    [said] = change(project, "B", 0.9)
    rows = [row["prompt"] for row in challenge.records.load(challenge.PLACE / "orchard-final/records", "held_out")]
    new = [prompt for prompt in rows if "weigh" in prompt]
    assert len(rows) == 50 + 60 and len(new) == 60  # all: the sentences are of another kind than those there were
    train = {row["prompt"] for row in challenge.records.load(challenge.ARTIFACTS / "data/words/records", "train")}
    assert not train & set(rows)
    assert "on new data" in said and "of another kind (AUC 1.00" in said
    [fresh] = said.split("on new data ")[1:]
    assert "of 60 problems" in fresh

    folder, both = challenge.PLACE / "orchard-final", versions.champions("orchard-final")
    answer, measured = folder / challenge.ANSWER, folder / "challenger/metrics.json"
    saved, before = files.read_json(answer), measured.stat().st_mtime_ns
    assert challenge.meet(*both, params.read()) == challenge.read(saved["comparison"])
    assert measured.stat().st_mtime_ns == before  # once is enough

    answer.write_text(answer.read_text().replace('"problems": 110', '"problems": 118'))  # as a flipped bit would
    assert files.read_json(answer) != saved
    assert str(challenge.meet(*both, params.read())) in said
    assert files.read_json(answer) == saved and measured.stat().st_mtime_ns > before
    assert challenge.damaged() == []
    challenge.seal(folder).unlink()
    assert challenge.damaged() == [folder] and not list(challenge.PLACE.iterdir())


@pytest.mark.slow
def test_without_the_champions_files_the_challenger_stays_candidate(project):
    champion = versions.champions("orchard-final")[-1]
    text = (project.folder / champion.path / "text").read_bytes()
    md5 = hashlib.md5(text).hexdigest()
    make(project, "B", 0.9)
    files.remove(project.folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:])
    [said] = promote.offer()
    assert said.startswith("export/final is candidate: orchard-final version 2 (it could not be compared with the ")
    assert champion.tag in said
    back = project.folder / versions.RELEASES / champion.tag / "model"
    back.mkdir(parents=True)
    (back / "text").write_bytes(text)
    assert promote.due()  # a flow looks again
    assert promote.offer()[0].startswith("export/final is champion: orchard-final version 2 (90.0% of 50 problems ")


@pytest.mark.slow
def test_what_could_not_be_tested_is_not_promoted_and_the_next_flow_tries_again(project):
    make(project, "B", 0.9)
    project.environment |= {"TOLD_TO_FAIL": "challenger", tracking.STORE: tracking.store()}
    shown = project.flow(check=1)
    assert "the challenger could not be evaluated, and nothing is promoted: told to fail\n" in shown
    assert tracking.registered("orchard-final")[0] == "1"
    del project.environment["TOLD_TO_FAIL"]
    assert "export/final is champion: orchard-final version 2 (90.0% of 50 problems " in project.flow()
    assert not promote.due()
