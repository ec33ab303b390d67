"""Numbers as people read them. None is "not measured"."""

from collections.abc import Callable
from functools import wraps
from math import floor, isfinite, log10
from typing import Any

MISSING = "not measured"


def measured(show: Callable[..., str]) -> Callable[..., str]:
    @wraps(show)
    def shown(value: Any, *more: Any) -> str:
        return MISSING if value is None else show(value, *more)

    return shown


@measured
def size(value: float) -> str:
    return prefixed(value, ("B", "kB", "MB", "GB", "TB"))


@measured
def count(value: float, largest: float | None = None) -> str:
    """With `largest`, in the unit that this one takes: a column of them compares by eye."""
    return prefixed(value, ("", "k", "M", "B", "T"), largest)


@measured
def share(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%" if 0 < value < 0.995 else f"{100 * value:.0f}\u00a0%"


@measured
def with_interval(value: float, low: float, high: float) -> str:
    return f"{share(value)} ({interval(low, high)})"


@measured
def interval(low: float, high: float) -> str:
    """Of shares, in per cent: 59.0–71.4."""
    return f"{100 * low:.1f}–{100 * high:.1f}"


@measured
def points(value: float) -> str:
    """A difference of shares, in percentage points."""
    return f"{100 * value:+.1f}".replace("-", "\u2212")


@measured
def signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\u2212")


@measured
def joules(value: float, largest: float | None = None) -> str:
    return prefixed(value * 1e6, ("µJ", "mJ", "J", "kJ", "MJ"), largest and largest * 1e6)


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


def prefixed(value: float, units: tuple[str, ...], largest: float | None = None) -> str:
    power, top = 0, largest or value
    while top >= 999.5 and power < len(units) - 1:
        top, power = top / 1000, power + 1
    scaled = value / 1000**power
    text = f"{scaled:.{2 if top < 10 else 1 if top < 100 else 0}f}" if largest else f"{scaled:.3g}"
    return f"{text}\u00a0{units[power]}".strip()


FILTERS = {show.__name__: show for show in (size, count, share, interval, points, signed, joules, number, brief)}
