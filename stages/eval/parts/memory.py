"""The memory that a model takes at its peak."""

from pathlib import Path


def reset_peak() -> int | None:
    """Start a new peak of this process's resident memory at its present size, in bytes; None where Linux is not."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    reset.write_text("5")
    return peak()


def peak() -> int:
    """The highest resident memory since the last reset, in bytes; an accelerator's memory is not in it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
