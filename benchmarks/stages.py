"""What orchestration costs a stage: projects of stages that do nothing, through the flow, and the plan alone of 10,000.

python -m benchmarks.stages

Stage n reads what stage n // 10 wrote. Each size runs once in a fresh project, then again with nothing to do; the cost
of a stage is the slope between the sizes, so that what a flow costs by itself is not in it. Seconds are those of the
processor in the flow's own process, which all stages share and other work hardly changes; not those of the stages'
processes, of which several run at once, or of Prefect's server.
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import _result
from stages.lib.frame.errors import UserError, command
from stages.lib.frame.params import STAGES

SMALL, LARGE, MANY = 10, 60, 10_000
RESULT = Path("benchmarks/results/stages.json")
FLOW = [sys.executable, "-m", "flows.lifecycle"]
PLAN = [sys.executable, "-c", "from flows import plan; print(len(plan.read()))"]
STAGE = """\
  n{0}:
    cmd: echo {0} > n{0}
    deps: [{1}]
    outs: [n{0}]
"""


def project(folder: Path, count: int) -> Path:
    folder.mkdir()
    stages = [STAGE.format(n, f"n{n // 10}" if n else "source") for n in range(count)]
    (folder / "dvc.yaml").write_text("stages:\n" + "".join(stages))
    (folder / "source").write_text("")
    (folder / "params.yaml").write_text("".join(f"{stage}: {{}}\n" for stage in STAGES))
    for words in ("git init -q", f"{sys.executable} -m dvc init -q"):
        subprocess.run(words.split(), cwd=folder, check=True)
    return folder


def seconds(words: list[str], folder: Path) -> float:
    paths = {"PYTHONPATH": str(Path.cwd()), "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
    start = spent()
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=os.environ | paths)
    if done.returncode:
        raise UserError(f"{' '.join(words)} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    return spent() - start


def spent() -> float:
    """By the processes that this one has waited for; a stage's is not its child."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        many = project(place / "many", MANY)
        planned = seconds(PLAN, many)
        took = {}
        for count in (SMALL, LARGE):
            folder = project(place / str(count), count)
            took[count] = seconds(FLOW, folder), seconds(FLOW, folder)
    run, idle = ((after - before) / (LARGE - SMALL) for before, after in zip(took[SMALL], took[LARGE], strict=True))
    result = {
        "plan_s": round(planned, 1),
        "plan_stages": MANY,
        "run_s_a_stage": round(run, 3),
        "noop_s_a_stage": round(idle, 3),
        "stages": f"{SMALL}, {LARGE}",
    }
    _result.save(RESULT, result, "dvc", "prefect")
    print("\n".join(f"{name:15} {value}" for name, value in result.items()))


if __name__ == "__main__":
    command(main)
