"""With nothing to do: the flow against plain `dvc repro`, in a clone of the project whose artefacts are up to date.

python -m benchmarks.orchestration [FOLDER]

FOLDER keeps the clone; without it the profile `tiny` runs first, some minutes. The flow's server is what its process
waits for most; a start of it alone is measured beside, so that what the flow itself costs can be told.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import _clone, _result
from stages.lib.frame.errors import UserError, command

ROUNDS = 5
RESULT = Path("benchmarks/results/orchestration.json")
FLOW = [sys.executable, "-m", "flows.lifecycle"]
SERVER = """
import os, urllib.request
import flows
from flows import server
process = server.own()
urllib.request.urlopen(os.environ[server.ADDRESS] + "/health", timeout=60).close()
process.stdin.close()
"""
COMMANDS = {
    "peer": [sys.executable, "-m", "dvc", "repro"],
    "ours": FLOW,
    "server": [sys.executable, "-c", SERVER],
}


def seconds(words: list[str], project: Path) -> float:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # `python`
    start = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, cwd=project, env=environment)
    if done.returncode:
        raise UserError(f"{' '.join(words)} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start


def main(folder: Path | None = None) -> None:
    with _clone.project(folder) as project:
        seconds([*FLOW, "--profile", "tiny"], project)
        for words in COMMANDS.values():
            seconds(words, project)  # the first run fills the page cache and, once, creates Prefect's database
        rounds = [{name: seconds(words, project) for name, words in COMMANDS.items()} for _ in range(ROUNDS)]
    ours, peer, server = (statistics.median(each[name] for each in rounds) for name in ("ours", "peer", "server"))
    result = {
        "ours_s": round(ours, 2),
        "peer_s": round(peer, 2),
        "server_s": round(server, 2),
        "noop_ratio": round(ours / peer, 2),
        "noop_difference_s": round(ours - peer, 2),
        "rounds": ROUNDS,
    }
    _result.save(RESULT, result, "dvc", "prefect")
    print("round   dvc repro   flow   server's start (seconds)")
    for number, each in enumerate(rounds, 1):
        print(f"{number:5}   {each['peer']:9.2f}   {each['ours']:4.2f}   {each['server']:.2f}")
    print(f"median  {peer:9.2f}   {ours:4.2f}   {server:.2f}   difference {ours - peer:.2f}")


if __name__ == "__main__":
    command(main)
