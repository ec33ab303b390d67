"""A profile is a params.yaml kept under infra/profiles; choosing one copies it over params.yaml."""

from pathlib import Path

from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.frame.params import PARAMS_FILE, names

PROFILES = Path("infra/profiles")


def use(name: str) -> None:
    """Copy a profile over params.yaml, unless that would lose edits."""
    known = {file.stem: file for file in sorted(PROFILES.glob("*.yaml"))}
    if name not in known:
        raise UserError(f"no profile '{name}' in {PROFILES}; there are: {names(known)}")
    if PARAMS_FILE.exists() and PARAMS_FILE.read_bytes() not in [file.read_bytes() for file in known.values()]:
        raise UserError(
            f"{PARAMS_FILE} has edits that are in no profile. Keep them: cp {PARAMS_FILE} {PROFILES}/mine.yaml\n"
            f"Or drop them: cp {known[name]} {PARAMS_FILE}"
        )
    with files.writing(PARAMS_FILE) as partial:
        partial.write_bytes(known[name].read_bytes())
