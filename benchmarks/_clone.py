"""The committed project in a clone of its own, so that a benchmark leaves the params.yaml here as it is."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def project(folder: Path | None) -> Iterator[Path]:
    """A temporary one, or `folder`, where a second call finds what is done."""
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary) / "orchard"
        if not place.exists():
            subprocess.run(["git", "clone", "--quiet", ".", str(place)], check=True)
        yield place
