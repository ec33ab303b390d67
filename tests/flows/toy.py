"""A small real project: git, DVC, toy techniques in real stage packages, SQLite MLflow. A run of it takes seconds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
S3_KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "no-secret", "AWS_DEFAULT_REGION": "us-east-1"}

STAGE = """
import os
import sys
import time
from pathlib import Path

from stages.STAGE import Toy
from stages.lib.frame import files, params, tracking
from stages.lib.frame.errors import UserError, command
from stages.lib.store import records


def write_records(place: Path, text: str, more: int) -> None:
    prompts = [f"What is {number} in {text}?" for number in range(200)]
    prompts += [f"How much does number {number} weigh?" for number in range(more)]
    rows = [{"id": str(n), "family": "f", "prompt": prompt, "solution": "s"} for n, prompt in enumerate(prompts)]
    with files.writing(place) as folder:
        records.save(folder, train=rows[::2], held_out=rows[1::2])


def main(variant: str, *, source: list[Path], code: Path, out: Path, params_file: Path = params.PARAMS_FILE) -> None:
    technique = params.load(Toy, variant, params_file)
    with tracking.run("STAGE", variant, technique, out, code, source) as run:
        print("hello from STAGE", variant, "warm" if "transformers" in sys.modules else "cold", flush=True)
        with open("ran.log", "a") as log:
            log.write("STAGE@" + variant + "\\n")
        time.sleep(technique.seconds)
        if technique.text == "killed":
            os.kill(os.getpid(), 9)
        if technique.text == "fail":
            raise UserError("told to fail")
        read = [file for folder in source for file in [folder, *folder.rglob("*")] if file.is_file()]
        text = technique.made("".join(file.read_text() for file in read))
        with files.writing(out / "model") as folder:
            (folder / "text").write_text(text)
        if "STAGE" == "data":
            write_records(out / "records", technique.text, technique.more)
        run.metrics |= {"length": len(text), "format": "text", **technique.metrics}
        with open("ended.log", "a") as log:
            log.write("STAGE@" + variant + "\\n")


if __name__ == "__main__":
    command(main)
"""

CONTRACT = """
from stages.lib.frame.params import CHAMPION, STAGES, Parent, Variant


class Start(Parent):
    stages = (*STAGES, CHAMPION)


class Toy(Variant):
    text: str
    source: str = ""
    model: Start | None = None
    seconds: float = 0
    more: int = 0
    metrics: dict[str, float] = {}

    def made(self, text: str) -> str:
        raise NotImplementedError
"""

TECHNIQUE = """
from stages.STAGE import Toy
from stages.STAGE.parts import ends


class Appends(Toy):
    def made(self, text: str) -> str:
        return text + ends.end(self.text)
"""

PART = """
def end(text: str) -> str:
    return text
"""

MEASURE_MAIN = """
import os
from pathlib import Path

from stages.eval import Measure
from stages.lib.frame import files, params, tracking
from stages.lib.frame.errors import UserError, command
from stages.lib.store.records import load


def main(
    measure: str,
    name: str,
    *,
    model: Path,
    records: Path,
    code: Path,
    out: Path,
    params_file: Path = params.PARAMS_FILE,
) -> None:
    technique = params.load(Measure, measure, params_file)
    with tracking.run("eval", f"{name}/{measure}", technique, out, code, [model, records]) as run:
        with open("ran.log", "a") as log:
            log.write(measure + "@" + name + "\\n")
        if name == os.environ.get("TOLD_TO_FAIL"):
            raise UserError("told to fail")
        run.metrics |= technique.of(name, model)
        held_out = load(records, "held_out")
        share = run.metrics.get("accuracy", 0)
        right = {row["id"]: number < share * len(held_out) for number, row in enumerate(held_out)}
        files.write_json(out / "samples.json", {"right": right})
        run.timings["decode_tokens_per_second"] = 100.0
        with open("ended.log", "a") as log:
            log.write(measure + "@" + name + "\\n")


if __name__ == "__main__":
    command(main)
"""

MEASURE = """
from pathlib import Path

from stages.lib.frame.params import Parent, Technique


class Measure(Technique):
    records: Parent

    def of(self, name: str, model: Path) -> dict[str, float]:
        raise NotImplementedError
"""

ACCURACY = """
from stages.eval import Measure


class Accuracy(Measure):
    by_name: dict[str, float] = {}
    by_text: dict[str, float] = {}
    per_family: int = 24

    def of(self, name, model):
        share = self.by_text.get((model / "text").read_text()[-1], self.by_name.get(name, 0.5))
        return {"accuracy": share, "accuracy_low": share - 0.05, "accuracy_high": share + 0.05}
"""

SPEED = """
from stages.eval import Measure


class Speed(Measure):
    bytes: int = 90

    def of(self, name, model):
        return {"bytes": self.bytes}
"""

PARAMS = """\
data:
  words: {method: appends, text: words, source: raw}
tokenize: {}
pretrain: {}
align: {}
traces: {}
endpoints: {}
distill: {}
prune:
  left: {method: appends, text: l, model: data/words, seconds: 0}
  right: {method: appends, text: r, model: data/words, seconds: 0}
quantize: {}
export:
  final: {method: appends, text: e, model: prune/left, metrics: {kl: 0.1}}
eval:
  models: {teacher: prune/left, student: export/final}
  accuracy: {records: data/words, per_family: 50, by_name: {student: 0.45}}
  speed: {records: data/words}
gates: {model: export/final, teacher: teacher, student: student, accuracy_kept: 0.8, kl: 0.5, bytes: 95, margin: 0.2}
"""

CODE = """\
stages:
  code:
    cmd:
      - python -m stages.lib.frame.commands
      - python -m stages.lib.frame.code --out artifacts/code
    always_changed: true
    outs: [artifacts/code]
"""
DATA = """
  data:
    foreach: ${data}
    do:
      cmd: python -m stages.data ${key} --source raw --code artifacts/code/data/${item.method}.json --out artifacts/data/${key}
      deps: ["artifacts/code/data/${item.method}.json", raw]
      params: ["data.${key}"]
      outs: ["artifacts/data/${key}/model", "artifacts/data/${key}/records"]
      metrics: ["artifacts/data/${key}/metrics.json"]
"""  # noqa: E501
OTHER = """
  STAGE:
    foreach: ${STAGE}
    do:
      cmd: >-
        python -m stages.STAGE ${key} --source artifacts/${item.model}/model
        --code artifacts/code/STAGE/${item.method}.json --out artifacts/STAGE/${key}
      deps: ["artifacts/code/STAGE/${item.method}.json", "artifacts/${item.model}/model"]
      params: ["STAGE.${key}"]
      outs: ["artifacts/STAGE/${key}/model"]
      metrics: ["artifacts/STAGE/${key}/metrics.json"]
"""
EVAL = """
  MEASURE:
    foreach: ${eval.models}
    do:
      cmd: >-
        python -m stages.eval MEASURE ${key} --model artifacts/${item}/model
        --records artifacts/${eval.MEASURE.records}/records
        --code artifacts/code/eval/MEASURE.json --out artifacts/eval/${key}/MEASURE
      deps:
        - artifacts/code/eval/MEASURE.json
        - artifacts/${item}/model
        - artifacts/${eval.MEASURE.records}/records
      params: [eval.MEASURE]
      outs: ["artifacts/eval/${key}/MEASURE/samples.json"]
      metrics: ["artifacts/eval/${key}/MEASURE/metrics.json"]
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

    def clone(self, folder: Path) -> "Project":
        """What git knows of it, as on another machine."""
        self.run("git", "clone", "-q", str(self.folder), str(folder))
        return Project(folder, self.environment | {"PYTHONPATH": str(folder)})

    def commit(self) -> None:
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "state")

    def flow(self, *arguments: str, check: int | None = 0) -> str:
        return self.run(sys.executable, "-m", "flows.lifecycle", *arguments, check=check)

    def replace(self, file: str, old: str, new: str) -> None:
        """Edit one place of a file."""
        text = (self.folder / file).read_text()
        assert text.count(old) == 1
        (self.folder / file).write_text(text.replace(old, new))

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
        if not log.exists():
            return []
        names = log.read_text().split()
        log.unlink()
        return names

    def lock(self) -> str:
        return (self.folder / "dvc.lock").read_text()


def write(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def build(folder: Path, variables: dict[str, str]) -> Project:
    """Committed, nothing has run; `variables` of its environment say which Prefect server it uses."""
    for package in ("flows", "apps", "stages/lib"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "stages/__init__.py", folder / "stages")
    write(folder, {"infra/prefect.yaml": (ROOT / "infra/prefect.yaml").read_text()})
    for stage in ("data", "prune", "export"):
        write(folder / "stages" / stage, {
            "__main__.py": STAGE.replace("STAGE", stage),
            "__init__.py": CONTRACT,
            "appends.py": TECHNIQUE.replace("STAGE", stage),
            "parts/ends.py": PART,
        })  # fmt: skip
    measures = {"__main__.py": MEASURE_MAIN, "__init__.py": MEASURE, "accuracy.py": ACCURACY, "speed.py": SPEED}
    write(folder / "stages/eval", measures)
    others = [OTHER.replace("STAGE", stage) for stage in ("prune", "export")]
    others += [EVAL.replace("MEASURE", measure) for measure in ("accuracy", "speed")]
    write(folder, {"raw": "raw ", "params.yaml": PARAMS, "dvc.yaml": "".join([CODE, DATA, *others])})
    (folder / ".gitignore").write_text("/artifacts\n/releases\n__pycache__\n*.log\nmlflow.db*\nmlruns\n")
    environment = os.environ | variables | {"PYTHONPATH": str(folder), "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    project = Project(folder, environment)
    for command in ("git init -q", "dvc init -q", "dvc config core.analytics false"):
        project.run(*command.split())
    project.commit()
    return project
