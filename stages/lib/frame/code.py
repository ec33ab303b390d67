"""Code identity: for every technique a file that changes if, and only if, code that it can run changes.

python -m stages.lib.frame.code --out FOLDER    writes FOLDER/STAGE/TECHNIQUE.json and FOLDER/STAGE.json

Each file maps the Python files in the technique's import closure (its stage's __main__ and contract among them) to a
hash of their tokens without comments, docstrings and layout. Tokens and not `ast.dump`, whose text differs between
Python versions; so a comma more at the end of a list, parentheses that were not needed and another order of imports
count as changes. Imports for type checkers alone (`if TYPE_CHECKING:`) never run and lead nowhere. A file that is read
and not imported, such as a template, is named in the tuple `READS` of the module that reads it. DVC, checkpoints,
lineage and Prefect's task versions all take their identity from here.
"""

import argparse
import ast
import hashlib
import io
import tokenize
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from stages.lib.frame import files

ROOT = Path(__file__).parents[3]  # of the package `stages`
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER}
BLOCK = {tokenize.INDENT: ">", tokenize.DEDENT: "<"}  # no statement looks like these
FSTRING_START, FSTRING_END = (getattr(tokenize, f"FSTRING_{name}", -1) for name in ("START", "END"))  # from 3.12 on
BODIES = ("body", "orelse", "finalbody", "handlers", "cases")  # where a statement holds others

Place = tuple[int, int]  # line, counted from 1, and column
Token = tuple[int, str, Place, Place, str]  # kind, text, start, end, line


def write(out: Path) -> None:
    """Bring the folder up to date; what is the same is not touched."""
    wanted = dict(identities())
    for file in out.rglob("*.json"):
        if file.relative_to(out) not in wanted:
            file.unlink()
    for name, hashes in wanted.items():
        if not (out / name).is_file() or files.read_json(out / name) != hashes:
            files.write_json(out / name, hashes)


def identities() -> Iterator[tuple[Path, dict[str, str]]]:
    """(file under the output folder, {source file: hash}) for every technique, and for every stage by itself."""
    for main in sorted((ROOT / "stages").glob("*/__main__.py")):
        stage = main.parent
        yield Path(f"{stage.name}.json"), hashes(main)
        for technique in sorted(stage.glob("*.py")):
            if not technique.name.startswith("_"):
                yield Path(stage.name, f"{technique.stem}.json"), hashes(main, technique)


def hashes(*starts: Path) -> dict[str, str]:
    return {file.relative_to(ROOT).as_posix(): fingerprint(file) for file in closure(*starts)}


def closure(*starts: Path) -> set[Path]:
    """The files and all they import or read, with the packages they lie in."""
    found: set[Path] = set()
    queue = list(starts)
    while queue:
        if (file := queue.pop()) not in found:
            found.add(file)
            queue += neighbours(file)
    return found


@cache
def neighbours(file: Path) -> list[Path]:
    """The packages that a file lies in, and what of this project it imports (at the top or later) or reads."""
    packages = [folder / "__init__.py" for folder in file.parents if ROOT in folder.parents]
    found = [package for package in packages if package.is_file()]
    tree = parse(file)
    for node in statements(tree.body) if tree else ():
        if isinstance(node, ast.Import):
            found += modules(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found += modules([str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)])
        elif isinstance(node, ast.Assign) and is_name(node.targets[0], "READS"):
            found += [file.parent / name for name in ast.literal_eval(node.value)]
    return found


def parse(file: Path) -> ast.Module | None:
    """A Python file's syntax; None for any other file, and for a broken one: only who imports it shall fail."""
    try:
        return ast.parse(file.read_bytes()) if file.suffix == ".py" else None
    except SyntaxError:
        return None


def statements(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Every statement that can run, those inside others too."""
    for node in body:
        yield node
        types_only = isinstance(node, ast.If) and is_name(node.test, "TYPE_CHECKING")
        for name in BODIES[types_only:]:
            yield from statements(getattr(node, name, []))


def is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def modules(names: Iterable[str]) -> list[Path]:
    """The files of those names that are modules under `stages`."""
    places = [ROOT.joinpath(*name.split(".")) for name in names if name.split(".")[0] == "stages"]
    files_of = ((place.with_suffix(".py"), place / "__init__.py") for place in places)
    return [file for either in files_of for file in either if file.is_file()]


@cache
def fingerprint(file: Path) -> str:
    """Hash of a Python file's tokens, or of any other file's bytes; of a broken file's too."""
    if file.suffix != ".py":
        return files.digest(file)[:16]
    try:
        tokens = "\n".join(lines(file.read_text(encoding="utf-8")))
    except (SyntaxError, tokenize.TokenError):
        return files.digest(file)[:16]
    return hashlib.sha256(tokens.encode()).hexdigest()[:16]


def lines(source: str) -> Iterator[str]:
    """The tokens of every statement but docstrings, one line each; what depends on layout alone is left out."""
    texts: list[str] = []
    docstring = True  # a statement that is nothing but a string
    for kind, text in strings_whole(tokenize.generate_tokens(io.StringIO(source).readline), source):
        if kind in BLOCK:
            yield BLOCK[kind]
        elif kind == tokenize.NEWLINE:
            if not docstring:
                yield "\0".join(texts)
            texts, docstring = [], True
        elif kind not in LAYOUT:
            texts.append(text)
            docstring = docstring and kind == tokenize.STRING


def strings_whole(tokens: Iterable[Token], source: str) -> Iterator[tuple[int, str]]:
    """(kind, text) of tokens, every f-string as one, which is how Python 3.11 has it and later versions do not."""
    depth, begin = 0, (0, 0)
    for kind, text, start, end, _ in tokens:
        if kind == FSTRING_START:
            depth, begin = depth + 1, begin if depth else start
        elif kind == FSTRING_END:
            depth -= 1
            if not depth:
                yield tokenize.STRING, between(source, begin, end)
        elif not depth:
            yield kind, text


def between(source: str, start: Place, end: Place) -> str:
    """The text from one place to another."""
    inside = source.split("\n")[start[0] - 1 : end[0]]
    inside[-1] = inside[-1][: end[1]]
    return "\n".join([inside[0][start[1] :], *inside[1:]])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    write(parser.parse_args().out)
