"""A small real project: git, DVC, toy techniques in real stage packages, SQLite MLflow, a Prefect server of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]

STAGE = """
import sys
import time
from pathlib import Path

import cyclopts

from stages.lib.frame import files, params, tracking


def main(variant: str, *, out: Path, source: list[Path]) -> None:
    _, p = params.load("{stage}", variant)
    with tracking.run("{stage}", variant, p, out, source) as run:
        print("hello from {stage}", variant, "warm" if "transformers" in sys.modules else "cold", flush=True)
        with open("ran.log", "a") as log:
            log.write("{stage}@" + variant + "\\n")
        time.sleep(p.seconds)
        if p.text == "fail":
            raise SystemExit("told to fail")
        files = [file for folder in source for file in [folder, *folder.rglob("*")] if file.is_file()]
        text = "".join(file.read_text() for file in files) + p.text
        with files.writing(out / "model") as folder:
            (folder / "text").write_text(text)
        run.metrics |= {{"length": len(text), **p.metrics}}
        with open("ended.log", "a") as log:
            log.write("{stage}@" + variant + "\\n")


if __name__ == "__main__":
    cyclopts.run(main)
"""

TOY = """
from typing import Literal
from stages.lib.frame.params import Parent, Variant


class Params(Variant):
    method: Literal["toy"]
    text: str
    model: Parent | None = None
    seconds: float = 0
    metrics: dict[str, float] = {}
"""

EVAL = """
from stages.lib.frame import params


class Params(params.Params):
    text: str = "s"
    model: params.Parent
    seconds: float = 0
    metrics: dict[str, float] = {}
"""

PARAMS = """\
data:
  words: {method: toy, text: words}
prune:
  left: {method: toy, text: l, model: data/words, seconds: 0}
  right: {method: toy, text: r, model: data/words, seconds: 0}
export:
  final: {method: toy, text: e, model: prune/left, metrics: {kl: 0.1}}
eval:
  teacher: {model: prune/left, metrics: {accuracy: 0.5, bits_per_byte: 2, bytes: 100}}
  student: {model: export/final, metrics: {accuracy: 0.45, bits_per_byte: 2, bytes: 90}}
gates: {model: export/final, teacher: teacher, student: student, accuracy_kept: 0.8, kl: 0.5, bytes: 95}
"""

DATA = """
  data:
    foreach: ${data}
    do:
      cmd: python -m stages.data ${key} --source raw --out artifacts/data/${key}
      deps: [raw, stages/data/toy.py]
      params: ["data.${key}"]
      outs: ["artifacts/data/${key}/model"]
      metrics: ["artifacts/data/${key}/metrics.json"]
"""
OTHER = """
  STAGE:
    foreach: ${STAGE}
    do:
      cmd: python -m stages.STAGE ${key} --source artifacts/${item.model}/model --out artifacts/STAGE/${key}
      deps: [CODE, "artifacts/${item.model}/model"]
      params: ["STAGE.${key}"]
      outs: ["artifacts/STAGE/${key}/model"]
      metrics: ["artifacts/STAGE/${key}/metrics.json"]
"""


class Project:
    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.environment = folder, environment

    def run(self, *command: str, check: int | None = 0) -> str:
        """Output of a command run in the project; its exit status must be `check` (None: any)."""
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert check is None or done.returncode == check, done.stdout + done.stderr
        return done.stdout + done.stderr

    def copy(self, folder: Path) -> "Project":
        shutil.copytree(self.folder, folder)
        return Project(folder, self.environment | {"PYTHONPATH": str(folder)})

    def commit(self) -> None:
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "state")

    def flow(self, *arguments: str, check: int | None = 0) -> str:
        return self.run(sys.executable, "-m", "flows.lifecycle", *arguments, check=check)

    def params(self, place: str, value: object) -> None:
        """Set one leaf of params.yaml, e.g. ("prune.left.text", "x")."""
        path, yaml = self.folder / "params.yaml", YAML()
        tree = node = yaml.load(path)
        *parents, leaf = place.split(".")
        for key in parents:
            node = node[key]
        node[leaf] = value
        yaml.dump(tree, path)

    def ran(self) -> list[str]:
        """Stages that were executed since the last call."""
        log = self.folder / "ran.log"
        names = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return names

    def lock(self) -> str:
        return (self.folder / "dvc.lock").read_text()


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory):
    """One server for all tests: its first start creates a database, which takes longer than most tests."""
    from flows import server

    home = tmp_path_factory.mktemp("prefect")
    before = os.environ.copy()
    os.environ.pop("PREFECT_API_URL", None)
    os.environ["PREFECT_HOME"] = str(home)
    process = server.own()
    environment = {"PREFECT_HOME": str(home), "PREFECT_API_URL": os.environ["PREFECT_API_URL"]}
    os.environ.clear()
    os.environ.update(before)
    yield environment
    process.stdin.close()
    process.wait(20)


@pytest.fixture(scope="session")
def template(tmp_path_factory, prefect_server) -> Project:
    """Committed, nothing has run."""
    folder = tmp_path_factory.mktemp("template")
    for package in ("flows", "stages/lib"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "stages/__init__.py", folder / "stages")
    for stage in ("data", "prune", "export", "eval"):
        (folder / "stages" / stage).mkdir()
        (folder / "stages" / stage / "__main__.py").write_text(STAGE.format(stage=stage))
        if stage != "eval":
            (folder / "stages" / stage / "__init__.py").write_text("")
            (folder / "stages" / stage / "toy.py").write_text(TOY)
    (folder / "stages/eval/__init__.py").write_text(EVAL)
    (folder / "raw").write_text("raw ")
    (folder / "params.yaml").write_text(PARAMS)
    others = {"prune": "stages/prune/toy.py", "export": "stages/export/toy.py", "eval": "stages/eval"}
    entries = [OTHER.replace("STAGE", stage).replace("CODE", code) for stage, code in others.items()]
    (folder / "dvc.yaml").write_text("stages:" + DATA + "".join(entries))
    (folder / ".gitignore").write_text("/artifacts\n__pycache__\n*.log\nmlflow.db*\nmlruns\n")
    environment = (
        os.environ | prefect_server | {"PYTHONPATH": str(folder), "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
    )
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    project = Project(folder, environment)
    for command in ("git init -q", "dvc init -q", "dvc config core.analytics false"):
        project.run(*command.split())
    project.commit()
    return project


@pytest.fixture(scope="session")
def finished(template, tmp_path_factory) -> Project:
    """After plain `dvc repro`, committed."""
    finished = template.copy(tmp_path_factory.mktemp("finished") / "project")
    finished.run("dvc", "repro", "-q")
    finished.commit()
    finished.ran()
    return finished


@pytest.fixture
def project(template, tmp_path) -> Project:
    """A copy of one's own, in which nothing has run."""
    return template.copy(tmp_path / "project")


@pytest.fixture
def done(finished, tmp_path, monkeypatch) -> Project:
    """A copy of one's own, up to date, as working directory."""
    copy = finished.copy(tmp_path / "project")
    monkeypatch.chdir(copy.folder)
    return copy
