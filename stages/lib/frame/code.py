"""Code identity: for every technique a file that changes if, and only if, code that it can run changes.

python -m stages.lib.frame.code --out FOLDER    writes FOLDER/STAGE/TECHNIQUE.json and FOLDER/STAGE.json

Each file maps the Python files in the technique's import closure (its stage's __main__ and contract among them) to a
hash of their tokens without comments, docstrings and layout. Tokens and not `ast.dump`, whose text differs between
Python versions. A file that is read and not imported, such as a template, is named in the tuple `READS` of the module
that reads it. DVC, checkpoints, lineage and Prefect's task versions all take their identity from here.
"""

import ast
import hashlib
import io
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from stages.lib.frame import files

ROOT = Path(__file__).parents[3]  # of the package `stages`
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER}
FSTRING_START, FSTRING_END = (getattr(tokenize, f"FSTRING_{name}", -1) for name in ("START", "END"))  # from 3.12 on


@cache
def fingerprint(file: Path) -> str:
    """Hash of a Python file's tokens, or of any other file's bytes."""
    if file.suffix != ".py":
        return files.digest(file)[:16]
    total = hashlib.sha256()
    for line in logical_lines(file.read_text(encoding="utf-8")):
        if any(kind != tokenize.STRING for kind, _ in line):  # a string that is a whole line is a docstring
            total.update("\0".join(f"{tokenize.tok_name[kind]} {text}" for kind, text in line).encode() + b"\n")
    return total.hexdigest()[:16]


def logical_lines(source: str) -> Iterator[list[tuple[int, str]]]:
    """(kind, text) of the tokens of each statement; what depends on layout alone is left out."""
    line: list[tuple[int, str]] = []
    for kind, text in strings_whole(source):
        if kind in (tokenize.INDENT, tokenize.DEDENT):
            yield [(kind, "")]
        elif kind == tokenize.NEWLINE:
            yield line
            line = []
        elif kind not in LAYOUT:
            line.append((kind, text))


def strings_whole(source: str) -> Iterator[tuple[int, str]]:
    """Tokens with every f-string as one, as Python 3.11 has it and later versions don't."""
    lines, depth, begin = source.splitlines(keepends=True), 0, (0, 0)
    for kind, text, start, end, _ in tokenize.generate_tokens(io.StringIO(source).readline):
        if kind == FSTRING_START:
            depth, begin = depth + 1, begin if depth else start
        elif kind == FSTRING_END:
            depth -= 1
            if not depth:
                yield tokenize.STRING, between(lines, begin, end)
        elif not depth:
            yield kind, text


def between(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    """The source from (line, column) to (line, column), lines counted from 1."""
    if start[0] == end[0]:
        return lines[start[0] - 1][start[1] : end[1]]
    return "".join([lines[start[0] - 1][start[1] :], *lines[start[0] : end[0] - 1], lines[end[0] - 1][: end[1]]])


@cache
def neighbours(file: Path) -> frozenset[Path]:
    """Files of this project that `file` imports, at the top or later, or reads."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "READS":
            found |= {file.parent / name for name in ast.literal_eval(node.value)}
        found |= {module for name in names if (module := find(name))}
    return frozenset(found)


def find(name: str) -> Path | None:
    """The file of a module under `stages`; None for anything else."""
    if name.split(".")[0] != "stages":
        return None
    place = ROOT.joinpath(*name.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def closure(*starts: Path) -> set[Path]:
    """The files and all they import, with the packages they lie in."""
    found: set[Path] = set()
    queue = list(starts)
    while queue:
        file = queue.pop()
        if file in found:
            continue
        found.add(file)
        packages = [folder / "__init__.py" for folder in file.parents if ROOT in folder.parents]
        queue += [package for package in packages if package.is_file()]
        if file.suffix == ".py":
            queue += neighbours(file)
    return found


def identities() -> Iterator[tuple[Path, dict[str, str]]]:
    """(file under the output folder, {source file: hash}) for every technique, and for every stage by itself."""
    for main in sorted((ROOT / "stages").glob("*/__main__.py")):
        stage = main.parent
        for technique in [None, *sorted(stage.glob("*.py"))]:
            if technique is None or not technique.name.startswith("__"):
                found = closure(main, *([technique] if technique else []))
                hashes = {file.relative_to(ROOT).as_posix(): fingerprint(file) for file in found}
                yield Path(stage.name, technique.stem if technique else "").with_suffix(".json"), hashes


def write(out: Path) -> None:
    """Bring the folder up to date; what is the same is not touched."""
    wanted = dict(identities())
    for file in out.rglob("*.json"):
        if file.relative_to(out) not in wanted:
            file.unlink()
    for name, hashes in wanted.items():
        if not (out / name).is_file() or files.read_json(out / name) != hashes:
            files.write_json(out / name, hashes)


if __name__ == "__main__":
    write(Path(sys.argv[sys.argv.index("--out") + 1]))
