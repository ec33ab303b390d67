"""Numbers as people read them. None is "not measured"."""

from collections.abc import Callable
from functools import wraps
from math import floor, isfinite, log10
from typing import Any

MISSING = "not measured"


def measured(show: Callable[[Any], str]) -> Callable[[Any], str]:
    @wraps(show)
    def shown(value: Any) -> str:
        return MISSING if value is None else show(value)

    return shown


@measured
def size(value: float) -> str:
    return prefixed(value, ("B", "kB", "MB", "GB", "TB"))


@measured
def count(value: float) -> str:
    return prefixed(value, ("", "k", "M", "B", "T"))


@measured
def share(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%" if 0 < value < 0.995 else f"{100 * value:.0f}\u00a0%"


@measured
def joules(value: float) -> str:
    return prefixed(value * 1e6, ("µJ", "mJ", "J", "kJ"))


@measured
def number(value: Any) -> str:
    """Integers in full, anything else to four significant digits."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return str(value)
    if isinstance(value, int) or value == int(value) or abs(value) >= 1e4:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 3 - floor(log10(abs(value))))}f}" if abs(value) >= 1e-4 else f"{value:.1e}"


@measured
def brief(value: float) -> str:
    """Three significant digits: 1,234 and 12.3 and 0.0123."""
    return f"{value:,.0f}" if abs(value) >= 100 or not value else f"{value:.3g}"


def prefixed(value: float, units: tuple[str, ...]) -> str:
    power = 0
    while value >= 999.5 and power < len(units) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g}\u00a0{units[power]}".strip()


FILTERS = {"size": size, "count": count, "share": share, "joules": joules, "number": number, "brief": brief}
