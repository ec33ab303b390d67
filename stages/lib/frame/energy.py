"""Energy of a piece of work by codecarbon's meter (Courty et al., zenodo.11171501).

CPU and GPU by RAPL and NVML where the machine lets them be read, then for the whole machine; else an estimate from this
process's share of the CPU. Memory always by a constant per module.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


@contextmanager
def meter() -> Iterator[dict[str, float]]:
    """Yield a dict that holds `joules` once the block has ended, and `energy_measured`: 1 only if the CPU's meter was
    read. Starting it takes 0.2 s once a process; then one sample a second of 2 ms. Meters may run inside each other."""
    spent: dict[str, float] = {}
    name_from_proc()
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.core.cpu import is_rapl_available

    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    tracker = OfflineEmissionsTracker(
        country_iso_code="DEU",  # it wants one, for grams of CO2; joules do not depend on it
        tracking_mode="process",
        output_methods=[],
        allow_multiple_runs=True,
        log_level=logging.CRITICAL,
    )
    tracker.start_task("work")
    try:
        yield spent
        kwh = tracker.stop_task("work").energy_consumed
        spent |= {"joules": kwh * 3.6e6, "energy_measured": float(is_rapl_available())}
    finally:
        tracker.stop()


def name_from_proc() -> None:
    """codecarbon asks py-cpuinfo for the processor's name, which also times its clock, for more than a second."""
    import cpuinfo

    if found := re.search(r"^model name\s*: (.+)$", CPUINFO.read_text() if CPUINFO.is_file() else "", re.MULTILINE):
        cpuinfo.get_cpu_info = lambda: {"brand_raw": found[1]}
