"""Where a benchmark's numbers go: one flat JSON file, with the machine and the versions that they belong to."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def save(out: Path, result: dict[str, Any], *packages: str) -> None:
    about = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result | about, indent=2, sort_keys=True) + "\n")
