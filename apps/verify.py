"""Is this export as it was made? python -m apps.verify FOLDER [--public-key KEY.pem]

Names every file that was tampered with, truncated, added or lost, and ends with 1 if there is one. With a public key,
also checks who signed it; without, the manifest only tells accidents from the original, not an attacker who rewrote it.
"""

from pathlib import Path

from stages.lib.frame.errors import UserError, command
from stages.lib.store import manifest, signature


def main(folder: Path, *, public_key: Path | None = None) -> None:
    found = manifest.problems(folder)
    if public_key:
        found += signature.problems(folder, public_key)
    if found:
        raise UserError("\n".join(f"{folder}: {problem}" for problem in found))
    signed = "signed by the owner of that key" if public_key else "signature not checked (no --public-key)"
    print(f"{folder}: {len(manifest.read(folder))} files as exported; {signed}")


if __name__ == "__main__":
    command(main)
