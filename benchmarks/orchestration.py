"""What the orchestration costs: the flow beside plain `dvc repro`, a bare Prefect flow and a Makefile.

python -m benchmarks.orchestration [--only forty] [--folder FOLDER] [--gigabytes 20]

forty    40 stages that do next to nothing, eight beside each other, five behind: all of them, and none
working  the same 40 where each takes two seconds: all of them
many     2,000 such stages: none to do; made by Make and recorded as DVC does, which writes its lock anew for each
tracked  one stage whose outputs are 20 GB, half of it in files of 50 kB, half in files of 1 GB: nothing to do
default  the project's own lifecycle: all of it, once by each (three quarters of an hour), and none. With --folder
         only the latter, in a clone there, where it runs first unless it has

All commands run in processes of their own, whose start counts. What a start of Prefect's server takes alone is measured
beside: the flow waits for it most. Peers know less: Make looks at times, Prefect's cache at a task's inputs, neither at
what files hold.
"""

import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks import _clone, _result
from stages.lib.frame import files, params
from stages.lib.frame.errors import UserError, command

ROUNDS = 5
RESULT = Path("benchmarks/results/orchestration.json")
FLOW, REPRO = [sys.executable, "-m", "flows.lifecycle"], [sys.executable, "-m", "dvc", "repro", "-q"]
SERVER = """
import os, urllib.request
import flows
from flows import server
process = server.own()
urllib.request.urlopen(os.environ[server.ADDRESS] + "/health", timeout=60).close()
process.stdin.close()
"""
START = [sys.executable, "-c", SERVER]
BARE = '''
"""What one would write with Prefect alone: a task a stage, kept by its inputs."""

import json
import subprocess

from prefect import flow, task
from prefect.cache_policies import INPUTS


@task(cache_policy=INPUTS, persist_result=True)
def run(command: str) -> None:
    subprocess.run(command, shell=True, check=True)


@flow
def graph() -> None:
    futures = {}
    for name, stage in json.load(open("graph.json")).items():
        futures[name] = run.submit(stage["command"], wait_for=[futures[parent] for parent in stage["parents"]])
    for future in futures.values():
        future.wait()


if __name__ == "__main__":
    import flows  # Prefect's settings, as we have them
    graph()
'''
Graph = dict[str, list[str]]  # stage -> what it needs


def seconds(words: list[str], project: Path) -> float:
    variables = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(project)}
    start = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, cwd=project, env=os.environ | variables)
    if done.returncode:
        raise UserError(f"{' '.join(words)} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start


def medians(
    commands: dict[str, list[str]], project: Path, before: Callable[[], None] = lambda: None, count: int = ROUNDS
) -> dict[str, float]:
    """Of `count` rounds, in each of which every command runs once, after `before`."""
    rounds = []
    for _ in range(count):
        taken = {}
        for name, words in commands.items():
            before()
            taken[name] = seconds(words, project)
        rounds.append(taken)
    return {name: statistics.median(each[name] for each in rounds) for name in commands}


def layers(count: int, width: int) -> Graph:
    """Each stage needs its left neighbour and the one above it in the layer before."""
    names = [f"s{number:04}" for number in range(count)]
    return {
        name: sorted({names[number - width], names[number - width - (number % width > 0)]}) if number >= width else []
        for number, name in enumerate(names)
    }


def project(folder: Path, graph: Graph, each_s: float = 0) -> None:
    """Our flows with a dvc.yaml of these stages; the same for Make and for Prefect alone."""
    for package in ("flows", "stages/lib"):
        shutil.copytree(package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy("stages/__init__.py", folder / "stages")
    (folder / "params.yaml").write_text("".join(f"{section}: {{}}\n" for section in params.STAGES))
    (folder / "raw").write_text("raw\n")
    (folder / "out").mkdir()
    inputs = {name: [f"out/{parent}" for parent in parents] or ["raw"] for name, parents in graph.items()}
    work = f"sleep {each_s} && " if each_s else ""
    commands = {name: f"{work}cat {' '.join(inputs[name])} | md5sum > out/{name}" for name in graph}
    stages = {name: {"cmd": commands[name], "deps": inputs[name], "outs": [f"out/{name}"]} for name in graph}
    with (folder / "dvc.yaml").open("w") as file:
        YAML().dump({"stages": stages}, file)
    rules = [f"out/{name}: {' '.join(inputs[name])}\n\t{commands[name]}\n" for name in graph]
    (folder / "Makefile").write_text("\n".join([f"all: {' '.join(f'out/{name}' for name in graph)}\n", *rules]))
    files.write_json(folder / "graph.json", {
        name: {"command": commands[name], "parents": parents} for name, parents in graph.items()
    })  # fmt: skip
    (folder / "bare.py").write_text(BARE)
    dvc = [sys.executable, "-m", "dvc"]
    for words in (["git", "init", "-q"], [*dvc, "init", "-q"], [*dvc, "config", "core.analytics", "false"]):
        seconds(words, folder)
    seconds(["git", "add", "-A"], folder)
    seconds(["git", "-c", "user.name=b", "-c", "user.email=b@b", "commit", "-qm", "graph"], folder)


def full_medians(folder: Path, commands: dict[str, list[str]], count: int = ROUNDS) -> dict[str, float]:
    """Medians of a project that nothing is left of."""
    storage = folder / "storage"
    os.environ["PREFECT_LOCAL_STORAGE_PATH"] = str(storage)

    def forget() -> None:
        for path in (folder / "out", folder / ".dvc/cache", folder / "dvc.lock", storage):
            files.remove(path)
        (folder / "out").mkdir()

    seconds(FLOW, folder)  # the first one creates Prefect's database, and MLflow's
    return medians(commands, folder, forget, count)


def forty(place: Path) -> dict[str, float]:
    folder = place / "forty"
    project(folder, layers(40, 8))
    commands = {"make": ["make", "-s", "-j2"], "prefect": [sys.executable, "bare.py"], "repro": REPRO, "flow": FLOW}
    full = full_medians(folder, commands)
    for words in commands.values():
        seconds(words, folder)
    noop = medians(commands | {"server": START}, folder)
    return {f"forty_full_{name}_s": value for name, value in full.items()} | {
        f"forty_noop_{name}_s": value for name, value in noop.items()
    }


def working(place: Path) -> dict[str, float]:
    folder = place / "working"
    project(folder, layers(40, 8), each_s=2)
    count = 3
    full = full_medians(folder, {"repro": REPRO, "flow": FLOW}, count)
    return {f"working_full_{name}_s": value for name, value in full.items()} | {"working_rounds": count}


def many(place: Path) -> dict[str, float]:
    folder = place / "many"
    project(folder, layers(2000, 40))
    record(folder)
    seconds([sys.executable, "-m", "dvc", "status", "-q"], folder)  # exits with 1 if anything had to be done
    seconds(FLOW, folder)
    noop = medians({"repro": REPRO, "flow": FLOW, "server": START}, folder)
    return {f"many_noop_{name}_s": value for name, value in noop.items()}


def record(folder: Path) -> None:
    """All stages done, as `dvc repro` leaves them."""
    seconds(["make", "-s", "-j2"], folder)
    stages = YAML(typ="safe").load(folder / "dvc.yaml")["stages"]

    def known(path: str) -> dict[str, str | int]:
        content = (folder / path).read_bytes()
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        cached = folder / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_bytes(content)
        return {"path": path, "hash": "md5", "md5": digest, "size": len(content)}

    done = {
        name: {"cmd": stage["cmd"], "deps": [known(path) for path in stage["deps"]], "outs": [known(stage["outs"][0])]}
        for name, stage in stages.items()
    }
    with (folder / "dvc.lock").open("w") as file:
        YAML().dump({"schema": "2.0", "stages": done}, file)


def tracked(place: Path, gigabytes: float) -> dict[str, float]:
    folder, half = place / "tracked", int(gigabytes / 2 * 1e9)
    small, large = half // 50_000, half // 10**9
    project(folder, {})
    made = f"""
import os
for folder, count, size in (("small", {small}, 50_000), ("large", {large}, 10**9)):
    os.makedirs(folder)
    for number in range(count):
        with open(f"{{folder}}/{{number:06}}", "wb") as file:
            file.write(os.urandom(1 << 12) * (size >> 12))
"""
    (folder / "make.py").write_text(made)
    (folder / "dvc.yaml").write_text(
        "stages:\n  data:\n    cmd: python make.py\n    deps: [make.py]\n    outs: [small, large]\n"
    )
    seconds([sys.executable, "-m", "dvc", "config", "cache.type", "hardlink"], folder)
    first = seconds(REPRO, folder)
    seconds(FLOW, folder)
    noop = medians({"repro": REPRO, "flow": FLOW, "server": START}, folder)
    size = files.size(folder / "small") + files.size(folder / "large")
    return {"tracked_gb": size / 1e9, "tracked_files": small + large, "tracked_full_repro_s": first} | {
        f"tracked_noop_{name}_s": value for name, value in noop.items()
    }


def default(folder: Path | None) -> dict[str, float]:
    full = {}
    with _clone.project(folder) as clone:
        first = seconds(FLOW, clone)
        if not folder:
            with _clone.project(None) as another:
                full = {"repro": seconds(REPRO, another), "flow": first}
        noop = medians({"repro": REPRO, "flow": FLOW, "server": START}, clone)
    ratio = (noop["flow"] - noop["server"]) / noop["repro"]
    return {
        **{f"default_full_{name}_s": value for name, value in full.items()},
        **{f"default_noop_{name}_s": value for name, value in noop.items()},
        "noop_ratio": ratio,
    }


def main(*, only: str | None = None, folder: Path | None = None, gigabytes: float = 20) -> None:
    """
    Args:
        only: One of forty, working, many, tracked, default; of the result only its figures are written anew.
        folder: Of a clone with the default run.
        gigabytes: How much `tracked` has.
    """
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        parts: dict[str, Callable[[], dict[str, float]]] = {
            "forty": lambda: forty(place),
            "working": lambda: working(place),
            "many": lambda: many(place),
            "tracked": lambda: tracked(place, gigabytes),
            "default": lambda: default(folder),
        }
        if only and only not in parts:
            raise UserError(f"--only {only}: there are {', '.join(parts)}")
        result: dict[str, float] = {}
        for name, part in parts.items():
            if only in (None, name):
                result |= {key: round(value, 2) for key, value in part().items()}
    print("\n".join(f"{key:32} {value:10,.2f}" for key, value in result.items()))
    others = files.read_json(RESULT) if only else {}
    _result.save(RESULT, others | result | {"rounds": ROUNDS}, "dvc", "prefect")


if __name__ == "__main__":
    command(main)
