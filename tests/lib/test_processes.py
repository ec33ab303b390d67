"""Work in several processes: in order, not far ahead, and never longer than whoever asked for it."""

import math
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from stages.lib.frame import processes

ORPHANS = """
import time
from pathlib import Path
from stages.lib.frame import processes
if __name__ == "__main__":
    for _ in processes.in_order(time.sleep, [0, 600, 600, 600, 600, 600, 600], 2):
        Path("begun").touch()
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_few_pieces_wait(workers):
    taken = []
    pieces = (taken.append(n) or n for n in range(60))
    for number, result in enumerate(processes.in_order(math.factorial, pieces, workers)):
        assert result == math.factorial(number)
        assert len(taken) <= number + 2 + processes.AHEAD * workers
    assert number == 59


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_work_and_one_of_the_pieces_are_told(workers):
    with pytest.raises(ValueError, match="not defined for negative"):
        list(processes.in_order(math.factorial, [1, 2, 3, -1, 5, 6, 7, 8, 9], workers))
    broken = (int(text) for text in ["1", "2", "3", "x"])
    with pytest.raises(ValueError, match="invalid literal"):
        list(processes.in_order(math.factorial, broken, workers))


def test_pieces_end_where_they_are_long_enough():
    words = ["aa", "b", "cccc", "d", "e", "f"]
    assert list(processes.pieces(words, len, 3)) == [["aa", "b"], ["cccc"], ["d", "e", "f"]]
    assert list(processes.pieces(words[:1], len, 3)) == [["aa"]] and not list(processes.pieces([], len, 3))


def test_processes_end_with_a_stage_that_is_killed(tmp_path):
    (tmp_path / "stage.py").write_text(ORPHANS)
    environment = {"PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen([sys.executable, "stage.py"], cwd=tmp_path, env=environment) as stage:
        wait_for((tmp_path / "begun").exists)
        children = psutil.Process(stage.pid).children(recursive=True)
        assert len(children) >= 2
        stage.kill()
    wait_for(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
