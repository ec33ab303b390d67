"""Which model a person means: a path, a variant such as export/gguf-q8_0, or an alias of the model registry."""

from pathlib import Path

from flows import versions
from stages.lib.frame import files, gates, params, tracking
from stages.lib.frame.errors import UserError

ARTIFACTS, EXPORTS = Path("artifacts"), "export"
ALIASES = ("champion", "candidate")  # the better one first


def shipped() -> str:
    """The variant that ships, by the gates in params.yaml."""
    gate = gates.read(params.read())
    if gate is None:
        raise UserError(f"{params.PARAMS_FILE} has no gates that say which model ships: name one with --model")
    return gate.model


def find(name: str) -> Path:
    """The GGUF file or the folder that is called so."""
    for place in (Path(name), ARTIFACTS / name):
        if place.is_dir():
            return inside(place / "model" if (place / "model").is_dir() else place)
        if place.is_file():
            return place
    if "@" in name:
        return registered(name)
    raise UserError(
        f"{name} is missing: no file, no folder, no variant under {ARTIFACTS} and no alias of a registered model; "
        "make run exports one, --model names another"
    )


def inside(folder: Path) -> Path:
    """The one GGUF file of a folder, or the folder if it holds a model of another format."""
    if (folder / "model.gguf").is_file():
        return folder / "model.gguf"
    found = sorted(folder.glob("*.gguf"))
    if (folder / "config.json").is_file() or not found:
        return folder
    if len(found) > 1:
        raise UserError(f"{folder} holds {len(found)} GGUF files: name one, e.g. {found[0]}")
    return found[0]


def registered(name: str) -> Path:
    """Of NAME@ALIAS."""
    return inside(versions.at_hand(versions.find(name)))


def exports() -> list[str]:
    """Every GGUF export, by the name that says most."""
    return [name(model.parents[1].name) for model in sorted((ARTIFACTS / EXPORTS).glob("*/model/model.gguf"))]


def name(variant: str) -> str:
    """An export's alias in the model registry if that holds these very files, or else export/VARIANT."""
    registered = f"orchard-{variant}"
    for alias in ALIASES if tracking.present() else ():
        found = tracking.registered(registered, alias)
        if found and found[1].exists() and files.digest(found[1]) == found[2]:
            return f"{registered}@{alias}"
    return f"{EXPORTS}/{variant}"
