"""What params.yaml puts into the commands of dvc.yaml: words, since plain `dvc repro` hands those commands to a shell.

python -m stages.lib.frame.commands    refuses anything else, in the stage that `dvc repro` runs before any other

The flow checks all of params.yaml before that. A path of the user's own stands in no command: stages read it from
params.yaml themselves.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.lib.frame import params
from stages.lib.frame.errors import UserError, command

PIPELINE = Path("dvc.yaml")
WORD = "[A-Za-z0-9_./-]+"
PLACE = re.compile(r"\$\{([^}]*)\}")


def require_words(pipeline: Mapping[str, Any], tree: params.Tree) -> None:
    for stage in pipeline["stages"].values():
        section = PLACE.fullmatch(stage.get("foreach", ""))
        places = PLACE.findall(str((stage["do"] if section else stage)["cmd"]))  # one command or several
        variants = (at(tree, section[1]) or {}) if section else {"": None}
        for key, item in variants.items():
            for place in places:
                value = at({"key": key, "item": item, **tree}, place)
                if value is not None and not re.fullmatch(WORD, str(value)):
                    where = f"{section[1]}.{key}: {place}" if section else place
                    raise UserError(
                        f"{params.PARAMS_FILE}: {where} is {value!r}, which would stand in a command; "
                        "it may have letters, digits, _ - . and / alone"
                    )


def at(tree: Any, place: str) -> Any:
    """What stands there in a tree, None if nothing does."""
    for name in place.split("."):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def main() -> None:
    require_words(YAML(typ="safe").load(PIPELINE), params.read())


if __name__ == "__main__":
    command(main)
