"""A model artefact as plain floats, whatever it is stored as; or as it is stored."""

from pathlib import Path
from typing import Any

from stages.lib.store import loading, models


def load(folder: Path) -> Any:
    """In 32 bits; packed integers (compressed-tensors) become q * scale, four-bit codes (bitsandbytes) their floats."""
    return models.place(loading.load(folder, folder)).eval()


def stored(folder: Path) -> Any:
    """Nothing unpacked, nothing widened: what is saved again has the bytes that were loaded."""
    return loading.read(folder, folder, loading.STORED)
