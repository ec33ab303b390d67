"""The champion before this one is champion again, and so is its source: python -m flows.rollback orchard-gguf-q8_0"""

from flows import promote, versions
from stages.lib.frame.errors import UserError, command
from stages.lib.frame.params import CHAMPION


def main(name: str) -> None:
    standing = versions.champions(name)
    if len(standing) < 2:
        raise UserError(f"git knows of no champion of {name} before {standing[0].tag if standing else 'any'}")
    version, source = standing[-2], versions.champions(f"{name}-source")[-2]
    promote.crown(version, source, rollback=True)
    print(
        f"{name}@{CHAMPION} is {version.tag} again, as before {standing[-1].tag}: python -m flows.fetch gives its files"
    )


if __name__ == "__main__":
    command(main)
