"""With nothing to do: the flow against plain `dvc repro`, in a project whose artefacts are up to date.

python -m benchmarks.orchestration
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import _result

ROUNDS = 5
RESULT = Path("benchmarks/results/orchestration.json")
COMMANDS = {"peer": [sys.executable, "-m", "dvc", "repro"], "ours": [sys.executable, "-m", "flows.lifecycle"]}


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start


def main() -> None:
    from flows import plan

    steps = plan.read()
    if waiting := [step.name for step in steps if not step.settled]:
        raise SystemExit(f"not up to date: {', '.join(waiting)}; run `dvc repro` first")
    for command in COMMANDS.values():
        seconds(command)  # the first run fills the page cache and, once, creates Prefect's database
    rounds = [{name: seconds(command) for name, command in COMMANDS.items()} for _ in range(ROUNDS)]
    ours, peer = (statistics.median(each[name] for each in rounds) for name in ("ours", "peer"))
    result = {
        "ours_s": round(ours, 2),
        "peer_s": round(peer, 2),
        "noop_ratio": round(ours / peer, 2),
        "noop_difference_s": round(ours - peer, 2),
        "stages": len(steps),
        "rounds": ROUNDS,
    }
    _result.save(RESULT, result, "dvc", "prefect")
    print("round   dvc repro   flow (seconds)")
    for number, each in enumerate(rounds, 1):
        print(f"{number:5}   {each['peer']:9.2f}   {each['ours']:.2f}")
    print(f"median  {peer:9.2f}   {ours:.2f}   difference {ours - peer:.2f}")


if __name__ == "__main__":
    main()
