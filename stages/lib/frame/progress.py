"""How far a long piece of work has come, and how long the rest will take."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm


def bar(total: int, unit: str, done: int = 0, scale: bool = False) -> "tqdm":
    """`scale` writes large numbers as 1.2M."""
    from tqdm import tqdm

    seconds = 1 if sys.stderr.isatty() else 5  # a log wants fewer lines than a terminal
    return tqdm(total=total, initial=done, mininterval=seconds, dynamic_ncols=True, unit=unit, unit_scale=scale)
