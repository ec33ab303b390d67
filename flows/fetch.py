"""The files of a registered model, as they were registered: from DVC's cache or its remote, checked against the sha256.

python -m flows.fetch orchard-gguf-q8_0@champion FOLDER     (or NAME@SHA256, the tag of a version in git)
"""

from pathlib import Path

from flows import versions
from stages.lib.frame.errors import command


def main(version: str, folder: Path) -> None:
    found = versions.find(version)
    versions.fetch(found, folder)
    print(f"{folder}: {version}, sha256 {found.sha256}")


if __name__ == "__main__":
    command(main)
