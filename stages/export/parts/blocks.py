"""Formats that pack weights block by block want rows of whole blocks."""

from typing import Any


def short_rows(model: Any, block: int) -> dict[str, int]:
    """The matrices whose rows hold no whole number of blocks, and how many weights a row has."""
    widths = {name: weight.shape[1] for name, weight in model.state_dict().items() if weight.ndim == 2}
    return {name: width for name, width in widths.items() if width % block}
