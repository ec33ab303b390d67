"""Who may enter the model registry: real SQLite MLflow, the toy project's real artefacts."""

import os
import sys

import pytest

from flows import promote
from stages.lib.frame import files, tracking


@pytest.fixture
def project(done, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/registry.db")
    return done


def export(project, name, kl=0.1, accuracy=0.45):
    """Another export of the same source, and its evaluation."""
    project.params(f"export.{name}", {"method": "appends", "text": name, "model": "prune/left", "metrics": {"kl": kl}})
    project.params(f"eval.models.{name}", f"export/{name}")
    project.params(f"eval.accuracy.by_name.{name}", accuracy)
    project.run("dvc", "repro", "-q")


@pytest.mark.slow
def test_what_passes_is_candidate_what_ships_is_champion_the_rest_stays_out(project):
    export(project, "small")
    export(project, "strays", kl=0.6)
    assert promote.offer() == [
        "export/small is candidate: orchard-small version 1",
        "export/strays is refused: it is 0.6 nats a token from its source; at most 0.5 allowed",
        "export/final is champion: orchard-final version 1",
    ]
    assert tracking.registered("orchard-strays") is None
    assert tracking.registered("orchard-small", "champion") is None
    assert tracking.registered("orchard-small")[0] == "1"
    for name, variant in {"orchard-final": "export/final", "orchard-final-source": "prune/left"}.items():
        folder = promote.ARTIFACTS / variant / "model"
        assert tracking.registered(name, "champion") == ("1", folder, files.digest(folder))


@pytest.mark.slow
def test_a_worse_model_leaves_the_champion_where_it_is(project):
    promote.offer()
    champion = tracking.registered("orchard-final", "champion")
    project.params("export.final.text", "worse")
    project.params("eval.accuracy.by_name.student", 0.1)
    project.run("dvc", "repro", "-q")
    (verdict,) = promote.offer()
    wanted = "it keeps 20.0% of the teacher's accuracy; 80% wanted"
    assert verdict == f"export/final is refused: {wanted}"
    assert tracking.registered("orchard-final", "champion") == tracking.registered("orchard-final") == champion


@pytest.mark.parametrize("missing", ["eval/teacher/accuracy", "eval/student/speed", "export/final"])
def test_what_was_not_made_is_not_offered(project, missing):
    files.remove(promote.ARTIFACTS / missing / "metrics.json")
    assert promote.offer() == []


@pytest.mark.slow
def test_an_export_made_anew_is_not_judged_by_what_was_measured_before(project):
    project.params("export.final.text", "E")
    project.run("dvc", "repro", "-q", "export@final", "accuracy@student")
    assert promote.offer() == ["export/final is refused: speed was measured of an earlier export/final: make run"]
    project.run("dvc", "repro", "-q")
    assert promote.offer() == ["export/final is champion: orchard-final version 1"]


@pytest.mark.slow
def test_a_flow_offers_what_it_did_not_make_itself_and_once(project):
    project.environment["MLFLOW_TRACKING_URI"] = os.environ["MLFLOW_TRACKING_URI"]
    assert "export/final is champion: orchard-final version 1" in project.flow() and project.ran() == []
    assert "orchard-final version" not in project.flow()
    project.params("gates.kl", 0.05)
    assert "export/final is refused: it is 0.1 nats a token from its source; at most 0.05 allowed" in project.flow()
    promote.OFFERED.write_bytes(b"\xff damaged")
    assert "at most 0.05 allowed" in project.flow() and "at most" not in project.flow("prune")


@pytest.mark.slow
def test_a_registry_that_is_gone_comes_back_from_git(project, tmp_path):
    project.environment["MLFLOW_TRACKING_URI"] = os.environ["MLFLOW_TRACKING_URI"]
    promote.offer()
    first = tracking.registered("orchard-final", "champion")
    project.params("export.final.text", "E")
    project.flow()
    (tmp_path / "registry.db").unlink()
    project.flow()
    show = """
from stages.lib.frame import tracking
for name in ("orchard-final", "orchard-final-source"):
    with tracking.client() as mlflow:
        found = mlflow.search_model_versions(f"name = '{name}'")
        print(sorted((int(each.version), each.tags["sha256"]) for each in found))
    print(tracking.registered(name, "champion"))
"""
    final, champion, source, source_champion = project.run(sys.executable, "-c", show).splitlines()[-4:]
    now = files.digest(promote.ARTIFACTS / "export/final/model")
    assert final == str([(1, first[2]), (2, now)]) and champion.startswith("('2', ") and now in champion
    below = files.digest(promote.ARTIFACTS / "prune/left/model")
    assert source == str([(1, below)]) and source_champion.startswith("('1', ") and below in source_champion


def test_a_measure_that_names_its_models_is_asked_of_no_other(project):
    project.params("eval.harness", {"models": {}})
    assert promote.offer() == ["export/final is champion: orchard-final version 1"]
    project.params("eval.harness", {"models": {"student": "export/final"}})
    assert promote.offer() == []  # not measured yet
