"""Tracking against what MLflow returns from a fresh SQLite database, and against the files beside the artefact."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from threading import Timer

import pytest
from pydantic import BaseModel

from stages.lib.frame import files, tracking
from stages.lib.frame.errors import UserError


class Technique(BaseModel):
    method: str = "wanda"
    calibration: dict[str, int] = {"rows": 8}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for name in ("in/model/weights", "in/tokens/train.bin", "code/wanda.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)
    return tmp_path


OUT, CODE, INPUTS = Path("artifacts/prune/w"), Path("code/wanda.json"), [Path("in/model"), Path("in/tokens")]


def prune(content: str = "weights") -> None:
    with tracking.run("prune", "w", Technique(), OUT, CODE, INPUTS) as run:
        run.metrics |= {"loss": 2.5, "by_family": {"gcd": 0.25}, "architecture": "llama"}
        run.timings["tokens_per_s"] = 10.0
        run.curve += [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5, "lr": 0.1}]
        files.write_json(OUT / "model" / "weights.json", content)


def runs() -> list:
    with tracking.client() as mlflow:
        return mlflow.search_runs([tracking.experiment(mlflow)], order_by=["attributes.start_time ASC"])


def test_a_clean_run_is_in_its_files_and_in_mlflow(project, monkeypatch):
    parent = tracking.start_pipeline("lifecycle")
    monkeypatch.setenv(tracking.PIPELINE, parent)
    prune()
    assert json.loads((OUT / "metrics.json").read_text()) == {
        "loss": 2.5,
        "by_family": {"gcd": 0.25},
        "architecture": "llama",
    }
    assert (OUT / "curve.csv").read_text() == "step,loss,lr\n1,3.0,\n2,2.5,0.1\n"
    timings = json.loads((OUT / "timings.json").read_text())
    assert timings.keys() == {"seconds", "joules", "energy_measured", "tokens_per_s"} and timings["joules"] > 0
    tracking.finish_pipeline(parent, True, 1.0, [OUT / "metrics.json"])

    pipeline, stage = runs()
    assert stage.info.run_name == "prune/w" and stage.info.status == pipeline.info.status == "FINISHED"
    assert pipeline.data.metrics == {"seconds": 1.0, "loss": 2.5, "by_family.gcd": 0.25}
    assert stage.data.params == {"method": "wanda", "calibration.rows": "8"}
    assert stage.data.metrics.items() >= {"loss": 2.5, "by_family.gcd": 0.25, "tokens_per_s": 10.0, "lr": 0.1}.items()
    assert stage.data.tags["mlflow.parentRunId"] == parent
    assert "architecture" not in stage.data.metrics  # MLflow keeps numbers alone
    assert stage.data.tags["orchard.code"] == files.digest(CODE)
    assert stage.data.tags["orchard.input.1"] == f"in/tokens {files.digest(INPUTS[1])}"
    assert stage.data.tags["orchard.output.model"] == f"{OUT}/model {files.digest(OUT / 'model')}"
    assert [each.dataset.name for each in stage.inputs.dataset_inputs] == ["in/tokens"]  # a model is no data set


def test_a_failed_run_leaves_no_metrics_and_no_secret(project, monkeypatch):
    prune()
    monkeypatch.setenv("HUB_TOKEN", "hf_abcdefgh")
    with pytest.raises(ValueError), tracking.run("prune", "w", Technique(), OUT, CODE, INPUTS) as run:
        run.metrics["loss"] = 1.0
        raise ValueError("refused hf_abcdefgh")
    assert not (OUT / "metrics.json").exists() and not (OUT / "curve.csv").exists()
    failed = runs()[-1]
    assert failed.info.status == "FAILED" and failed.data.metrics == {}
    assert failed.data.tags["orchard.error"] == "ValueError('refused <HUB_TOKEN>')"


def test_the_same_content_is_registered_once_and_found_by_its_hash(project):
    prune()
    assert tracking.producer(Path("elsewhere/model"), files.digest(OUT / "model")).id == runs()[-1].info.run_id
    assert tracking.producer(Path("elsewhere/model"), "0" * 64) is None
    first = files.digest(OUT / "model")
    assert [tracking.register("orchard-w", OUT / "model", first, {}) for _ in range(2)] == ["1", "1"]
    prune("other weights")
    assert tracking.register("orchard-w", OUT / "model", files.digest(OUT / "model"), {}) == "2"
    tracking.set_alias("orchard-w", "champion", first)
    with pytest.raises(UserError, match="the model registry has no version of orchard-w with the sha256 000000000000"):
        tracking.set_alias("orchard-w", "champion", "0" * 64)
    assert tracking.registered("orchard-w")[:2] == ("2", OUT / "model")
    assert tracking.registered("orchard-w", "champion")[0] == "1"
    assert tracking.registered("orchard-unknown") is None


def test_mlflow_knows_which_model_was_made_of_which(project):
    """Its own edges: the run that made a model has it as output, the run that read it as input."""
    prune()
    made = files.digest(OUT / "model")
    with tracking.run("export", "e", Technique(), Path("artifacts/export/e"), CODE, [OUT / "model"]):
        files.write_json(Path("artifacts/export/e/model/weights.json"), "exported")
    prune()  # the same content once more: no other model
    tracking.register("orchard-w", OUT / "model", made, {})
    ids = [run.info.run_id for run in runs()]
    with tracking.client() as mlflow:
        known = {each.model_id: each for each in mlflow.search_logged_models([tracking.experiment(mlflow)])}
        version = mlflow.get_model_version("orchard-w", "1")
        whole = [mlflow.get_run(each) for each in ids]
    assert sorted(each.name for each in known.values()) == ["export-e", "in", "prune-w"]
    edges = [
        {way: [known[each.model_id].name for each in models] for way, models in ends.items()}
        for run in whole
        for ends in [{"in": run.inputs.model_inputs, "out": run.outputs.model_outputs}]
    ]
    first = {"in": ["in"], "out": ["prune-w"]}
    assert edges == [first, {"in": ["prune-w"], "out": ["export-e"]}, first]
    assert known[version.source.removeprefix("models:/")].tags["sha256"] == made


@pytest.mark.parametrize("folder", [".", "made", "/models/v1.5", 'it\'s 5%: "a"/b.c'])
def test_mlflow_takes_the_name_of_a_model_from_any_folder(project, folder):
    with tracking.client() as mlflow:
        model = mlflow.get_logged_model(tracking.logged(mlflow, f"{folder}/model".removeprefix("./"), "1" * 64))
    assert model.tags["path"] == f"{folder}/model".removeprefix("./")


def test_the_experiment_opens_on_its_runs_old_or_new(project):
    """As MLflow's own page reads it: ExperimentKind.CUSTOM_MODEL_DEVELOPMENT in its bundle."""
    with tracking.client() as mlflow:
        mlflow.create_experiment(tracking.EXPERIMENT)
        for _ in range(2):
            kind = mlflow.get_experiment(tracking.experiment(mlflow)).tags["mlflow.experimentKind"]
            assert kind == "custom_model_development"


def test_a_place_for_checkpoints_changes_with_inputs_code_and_params(project):
    def place(technique=Technique()) -> Path:  # noqa: B008
        with tracking.run("prune", "w", technique, OUT, CODE, INPUTS) as run:
            return run.place(Path("kept"), technique)

    first = place()
    assert place() == first and first.parent == Path("kept")
    CODE.write_text("edited")
    second = place()
    (INPUTS[0] / "weights").write_text("others")
    third = place()
    assert len({first, second, third, place(Technique(method="magnitude"))}) == 4


@pytest.mark.slow
def test_parallel_stages_may_meet_a_fresh_database(project):
    code = "from stages.lib.frame import tracking; print(tracking.start_pipeline('p'))"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    started = [subprocess.Popen([sys.executable, "-c", code], env=env) for _ in range(3)]
    assert [process.wait() for process in started] == [0, 0, 0]
    assert len(runs()) == 3


def half_made(database: Path) -> None:
    """As a kill leaves it: most tables are there, but nothing says of which version."""
    with closing(sqlite3.connect(database)) as opened:
        opened.execute("DROP TABLE alembic_version")
        opened.commit()


DAMAGES = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "emptied": lambda file: file.write_bytes(b""),
    "of something else": lambda file: file.write_bytes(b"not a database at all" * 99),
    "half made": half_made,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_database_is_kept_aside(project, damage, capsys):
    beginning().wait()
    DAMAGES[damage](project / "mlflow.db")
    damaged = (project / "mlflow.db").read_bytes()
    prune()
    assert (project / "mlflow.db.damaged-1").read_bytes() == damaged
    assert "mlflow.db is damaged: kept as" in capsys.readouterr().out
    assert [run.data.tags["orchard.variant"] for run in runs()] == ["w"]


def test_a_database_that_is_only_busy_stays(project):
    prune()
    with closing(sqlite3.connect(project / "mlflow.db", check_same_thread=False)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        Timer(1, writer.rollback).start()
        tracking.prepare.cache_clear()
        prune("others")
    assert len(runs()) == 2 and not list(project.glob("*damaged*"))


BEGIN = "from stages.lib.frame import tracking; tracking.start_pipeline('lifecycle')"
FULL = """
import resource
from pathlib import Path
from stages.lib.frame import tracking
from stages.lib.frame.errors import command

def main():
    with tracking.client():
        size = Path("mlflow.db").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # as on a full disk: it grows no more
    while True:
        tracking.start_pipeline("x" * 10_000)

command(main)
"""


def beginning(program: str = BEGIN) -> "subprocess.Popen[str]":
    """Another process, which makes the tables and one run in them."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 0.1, 0.3, 1])
def test_kill_9_while_the_tables_are_made_harms_no_later_run(project, seconds):
    first = beginning()
    while not list(project.glob("*mlflow.db*[!k]")):  # but for the lock
        time.sleep(0.02)
    time.sleep(seconds)
    first.kill()
    first.wait()
    prune()
    assert "w" in [run.data.tags.get("orchard.variant") for run in runs()]


def test_a_database_for_which_there_is_no_room_is_told_in_a_line(project):
    full = beginning(FULL)
    _, said = full.communicate()
    assert full.returncode == 1 and said.startswith("a database of SQLite: ") and said.count("\n") == 1, said
