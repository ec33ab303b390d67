"""Profiles: infra/profiles/NAME.yaml says what differs from the profile that its `base` names, or else from `laptop`.

Overlay and base are merged as a JSON merge patch (RFC 7396): mappings are merged key by key, null removes a key, any
other value replaces the old one. `base: none` is for a profile that says everything itself, as `laptop` does.
"""

import io
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.anchor import Anchor
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError
from ruamel.yaml.mergevalue import merge_attrib

from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.frame.params import BESIDE, PARAMS_FILE, SECTIONS, STAGES, names

PROFILES = Path("infra/profiles")
DEFAULT, NO_BASE = "laptop", "none"
KEYS = (*STAGES, *SECTIONS, *BESIDE)


def use(name: str, target: Path = PARAMS_FILE) -> None:
    """Make a profile the params.yaml, unless that would lose edits."""
    text = show(name)
    now = target.read_text(encoding="utf-8") if target.exists() else text
    if now != text and now not in (show(each) for each in known()):
        raise UserError(
            f"{target} has edits that are in no profile. Keep them: save what differs from {DEFAULT} as "
            f"{PROFILES}/mine.yaml\nOr drop them: python -m flows.lifecycle --profile {name} --show > {target}"
        )
    with files.writing(target) as partial:
        partial.write_text(text, encoding="utf-8")


def show(name: str) -> str:
    """The merged profile as a file, with the comments of base and overlay; the header is the overlay's."""
    header, overlay = load(name)
    if base_of(name, overlay) is None and "base" not in overlay:
        return path(name).read_text(encoding="utf-8")
    text = io.StringIO()
    round_trip().dump(merged(name), text)
    lines = re.sub(r"\n+", "\n", text.getvalue())  # ruamel leaves empty lines where the leaf before them stood
    body = re.sub(r"\A(#.*\n)*", "", lines)
    return header + re.sub(r"(?m)^(?=[a-z_]+:)", "\n", body)


def merged(name: str, above: tuple[str, ...] = ()) -> CommentedMap:
    """The whole tree of a profile; a stage of which nothing is left is empty, as dvc.yaml wants every stage."""
    _, overlay = load(name)
    base = base_of(name, overlay)
    if base in (*above, name):
        raise UserError(f"{path(name)}: base is '{base}', which is built on '{name}' itself")
    tree = patch(merged(base, (*above, name)) if base else None, overlay)
    tree.pop("base", None)
    for stage in STAGES:
        if stage not in tree:
            tree[stage] = CommentedMap()
    return tree


def patch(old: Any, new: Any) -> Any:
    """RFC 7396's MergePatch(old, new); `old` stays as it is."""
    if not isinstance(new, Mapping):
        return new
    kept = isinstance(old, Mapping)
    tree: Any = deepcopy(old if kept else new)
    for key, value in new.items():
        if value is None:
            tree.pop(key, None)
            continue
        tree[key] = patch(old.get(key) if kept else None, value)
        if kept and isinstance(new, CommentedMap) and key in new.ca.items:
            tree.ca.items[key] = new.ca.items[key]
    return tree


def load(name: str) -> tuple[str, CommentedMap]:
    """The comment a profile begins with, and its own keys."""
    text = path(name).read_text(encoding="utf-8")
    try:
        tree = round_trip().load(text)
    except YAMLError as error:
        raise UserError(f"{path(name)} is not YAML: {error}") from error
    if not isinstance(tree, CommentedMap):
        raise UserError(f"{path(name)} must be a mapping, not {tree!r}")
    if unknown := [key for key in tree if key not in ("base", *KEYS)]:
        raise UserError(f"{path(name)}: unknown key {names(unknown)}; there are: {names(('base', *KEYS))}")
    header = re.match(r"(#.*\n)*", text)
    assert header
    return header[0], spelt_out(tree)


def spelt_out(node: Any) -> Any:
    """Without `<<` and anchors: what they bring stands where it is meant, so that whoever edits it there changes it."""
    if not isinstance(node, CommentedMap):
        return node
    brought = [key for each in node.merge for key in spelt_out(each)]
    made = CommentedMap((key, spelt_out(node[key])) for key in dict.fromkeys([*brought, *node]))
    node.copy_attributes(made)
    for name in (merge_attrib, Anchor.attrib):
        if hasattr(made, name):
            delattr(made, name)
    return made


def base_of(name: str, overlay: Mapping[str, Any]) -> str | None:
    base = overlay.get("base", NO_BASE if name == DEFAULT else DEFAULT)
    return None if base == NO_BASE else str(base)


def path(name: str) -> Path:
    if name not in known():
        raise UserError(f"no profile '{name}' in {PROFILES}; there are: {names(known())}")
    return PROFILES / f"{name}.yaml"


def known() -> list[str]:
    return sorted(file.stem for file in PROFILES.glob("*.yaml"))


def round_trip() -> YAML:
    """Reads and writes YAML with its comments, in lines as long as they are."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    return yaml
