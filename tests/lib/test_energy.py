"""The meter against what must hold of any energy: it grows with time and work, and parts do not exceed the whole."""

import os
import threading
import time
from pathlib import Path

import pytest

from stages.lib.frame import energy


def work(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_a_longer_piece_of_work_takes_more_and_watts_are_those_of_a_machine():
    joules = []
    for seconds in (0.2, 0.8):
        with energy.meter() as spent:
            work(seconds)
        assert 0.5 < spent["joules"] / seconds < 2000
        joules.append(spent["joules"])
    assert joules[1] > 2 * joules[0]
    assert spent["energy_measured"] in (0, 1)


def test_a_meter_inside_another_counts_no_more_than_it():
    with energy.meter() as whole:
        work(0.3)
        with energy.meter() as part:
            work(0.3)
    assert 0 < part["joules"] < whole["joules"]


def test_nothing_of_it_is_left_when_the_work_fails():
    before = threading.enumerate()
    with pytest.raises(ValueError), energy.meter() as spent:
        raise ValueError("no")
    for thread in set(threading.enumerate()).difference(before):
        thread.join(10)  # a cancelled timer needs a moment to end
    assert spent == {} and not set(threading.enumerate()).difference(before)


def test_it_is_cheap_to_start_and_runs_in_a_forked_child():
    with energy.meter():
        pass  # imports
    start = time.perf_counter()
    with energy.meter():
        pass
    assert time.perf_counter() - start < 0.3
    if not (child := os.fork()):
        with energy.meter() as spent:
            work(0.1)
        os._exit(not spent["joules"] > 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_codecarbon_gets_the_name_that_linux_tells(tmp_path, monkeypatch):
    import cpuinfo

    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: AMD EPYC 9B14\nprocessor\t: 1\nmodel name\t: x\n")
    monkeypatch.setattr(cpuinfo, "get_cpu_info", asked := cpuinfo.get_cpu_info)
    monkeypatch.setattr(energy, "CPUINFO", Path("/nowhere"))
    energy.name_from_proc()
    assert cpuinfo.get_cpu_info is asked  # not told: py-cpuinfo must find it out
    monkeypatch.setattr(energy, "CPUINFO", tmp_path / "cpuinfo")
    energy.name_from_proc()
    assert cpuinfo.get_cpu_info() == {"brand_raw": "AMD EPYC 9B14"}
