"""Code identity, on a small project and on copies of this one: which edit changes which technique, and which none."""

import ast
import io
import json
import os
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from stages.lib.frame import code

ROOT = Path(__file__).parents[2]
REAL = sorted(file.relative_to(ROOT) for file in (ROOT / "stages").rglob("*.py"))
PROJECT = {
    "stages/__init__.py": '"""The stages."""\n',
    "stages/lib/__init__.py": "",
    "stages/lib/shared.py": "def double(x):\n    return 2 * x\n",
    "stages/lib/rare.py": "CONSTANT = 7\n",
    "stages/lib/types.py": "class Thing: ...\n",
    "stages/make/__init__.py": '"""The contract."""\n',
    "stages/make/__main__.py": "from stages import make\n",
    "stages/make/one.py": "from stages.lib import shared\n\nprint(shared.double(2))\n",
    "stages/make/two.py": (
        '"""Two."""\n\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from stages.lib.types import Thing\n'
        '\nREADS = ("page.j2",)\n\n\ndef run():\n    if True:\n        import stages.lib.rare as rare\n\n'
        "    return f\"{rare.CONSTANT} {'nested'}\"\n"
    ),
    "stages/make/page.j2": "<p>",
}


def identities(folder: Path) -> dict[str, dict[str, str]]:
    """What the stage writes for the project in a folder."""
    out, environment = folder / "artifacts" / "code", os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "stages.lib.frame.code", "--out", str(out)]
    subprocess.run(command, cwd=folder, check=True, env=environment)
    return {
        file.relative_to(out).with_suffix("").as_posix(): json.loads(file.read_text()) for file in out.rglob("*.json")
    }


@pytest.fixture
def project(tmp_path):
    """A stage with two techniques, and the code stage itself."""
    for name, text in PROJECT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    shutil.copytree(ROOT / "stages/lib/frame", tmp_path / "stages/lib/frame", ignore=shutil.ignore_patterns("__pyc*"))
    return tmp_path


@pytest.fixture
def real(tmp_path):
    """This project's stages."""
    ignored = shutil.ignore_patterns("__pycache__", "corpus")
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=ignored)
    return tmp_path


def changed(folder: Path, before: dict, file: str, old: str, new: str) -> set[str]:
    """The techniques that an edit of a file changes; the edit is undone."""
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))
    after = identities(folder)
    (folder / file).write_text(text)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_a_technique_depends_on_what_it_can_run(project):
    found = identities(project)
    shared = {"stages/__init__.py", "stages/make/__init__.py", "stages/make/__main__.py"}
    lib = {"stages/lib/__init__.py"}
    assert set(found) == {"make", "make/one", "make/two"}
    assert set(found["make"]) == shared
    assert set(found["make/one"]) == shared | lib | {"stages/make/one.py", "stages/lib/shared.py"}
    read = {"stages/make/two.py", "stages/lib/rare.py", "stages/make/page.j2"}  # and nothing that is only a type
    assert set(found["make/two"]) == shared | lib | read


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("stages/lib/shared.py", "2 * x", "3 * x", {"make/one"}),
        ("stages/lib/rare.py", "7", "8", {"make/two"}),
        ("stages/make/two.py", "'nested'", "'changed'", {"make/two"}),
        ("stages/make/page.j2", "<p>", "<b>", {"make/two"}),
        ("stages/make/__init__.py", '"""The contract."""', "RULE = 1", {"make", "make/one", "make/two"}),
        ("stages/lib/types.py", "Thing", "Other", set()),
        ("stages/lib/shared.py", "2 * x", "(2 *\n        x)  # twice", {"make/one"}),  # parentheses are tokens
        ("stages/lib/shared.py", "def double(x):", "def double(\n    # of a number\n    x\n):", set()),
        ("stages/lib/shared.py", "    return", '    """Twice."""\n\n    return', set()),
        ("stages/lib/shared.py", "    return 2 * x", "      return 2 * x", set()),
        ("stages/lib/shared.py", "(x):\n    return", "(x): return", {"make/one"}),  # a block is no block any more
        ("stages/make/one.py", "print", "if False:\n    print", {"make/one"}),
        ("stages/make/one.py", "print(shared", "print ( shared", set()),
        ("stages/lib/rare.py", "7", "7 7", {"make/two"}),  # a broken file stops nobody but its users
    ],
)
def test_an_edit_changes_the_techniques_that_import_the_file(file, old, new, expected, project):
    assert changed(project, identities(project), file, old, new) == expected


def test_what_is_the_same_is_not_written_and_what_is_gone_goes(project):
    identities(project)
    files = {file: file.stat() for file in (project / "artifacts/code").rglob("*.json")}
    identities(project)
    assert all(file.stat() == stat for file, stat in files.items())
    (project / "stages/make/one.py").unlink()
    assert set(identities(project)) == {"make", "make/two"}


def test_two_techniques_of_one_name_and_a_package_keep_apart(project):
    (project / "stages/make/parts").mkdir()
    (project / "stages/make/parts/__init__.py").write_text("PART = 1\n")
    (project / "stages/make/parts/more.py").write_text("MORE = 2\n")
    (project / "stages/make/one.py").write_text("from stages.make.parts import more\n")
    found = identities(project)
    assert {"stages/make/parts/__init__.py", "stages/make/parts/more.py"} < set(found["make/one"])
    assert "stages/lib/shared.py" not in found["make/one"] and set(found) == {"make", "make/one", "make/two"}


def reformatted(text: str) -> str:
    """The same program with other docstrings, comments, blank lines and line breaks."""
    tree = ast.parse(text)
    owners = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    lines = text.splitlines()
    docstrings = [node.body[0] for node in owners if ast.get_docstring(node) is not None]
    for node in sorted(docstrings, key=lambda node: -node.lineno):
        lines[node.lineno - 1 : node.end_lineno] = [" " * node.col_offset + '"""Says something else."""']
    text = "\n".join(lines) + "\n"

    lines, depth, in_string = text.splitlines(), 0, set()
    commas: dict[int, list[int]] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.OP:
            depth += (token.string in "([{") - (token.string in ")]}")
        if token.type == tokenize.STRING:
            in_string |= set(range(token.start[0], token.end[0]))
        if token.string == "," and depth:
            commas.setdefault(token.end[0], []).append(token.end[1])
    for row, columns in commas.items():
        for column in reversed(columns):
            before, after = lines[row - 1][:column], lines[row - 1][column:]
            lines[row - 1] = f"{before}\n{after}" if after.strip() else before
    blank_lines = [line if row in in_string else f"{line}\n" for row, line in enumerate(lines, 1)]
    return "# a comment\n\n" + "\n".join(blank_lines) + "\n# the end\n"


def test_comments_docstrings_and_layout_of_every_file_change_nothing(real):
    before = identities(real)
    for file in REAL:
        text = (real / file).read_text()
        (real / file).write_text(other := reformatted(text))
        assert other != text
    for file in REAL:
        compile((real / file).read_text(), str(file), "exec")
    assert identities(real) == before


def test_the_files_of_the_techniques_are_those_that_dvc_yaml_names(real):
    from stages.lib.frame import params

    expected = {f"{stage}/{method}" for stage in params.STAGES for method in params.techniques(stage)}
    assert set(identities(real)) == expected | {*params.STAGES, "report"}


SCORED = ("constitution", "endpoint", "llama_cpp", "rewarded", "rollouts", "solutions", "steps")


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("stages/lib/runtimes/executorch.py", {"eval", "eval/*", "export/executorch"}),
        ("stages/prune/wanda.py", {"prune/wanda"}),
        ("stages/eval/speed.py", {"eval/speed"}),
        ("stages/eval/accuracy.py", {"eval/accuracy"}),
        ("stages/eval/parts/memory.py", {"eval/speed"}),
        ("stages/prune/__main__.py", {"prune", "prune/*"}),
        (
            "stages/lib/text/duplicates.py",
            {"data", "data/*", "eval/accuracy", "align/grpo", "align/ppo", "align/reinforce", "distill/on_policy"}
            | {f"traces/{name}" for name in SCORED},
        ),
    ],
)
def test_a_real_edit_changes_exactly_who_imports_it(file, expected, real):
    before = identities(real)
    (real / file).write_text((real / file).read_text() + "\nEDITED = 1\n")
    after = identities(real)
    edited = {name for name in after if before[name] != after[name]}
    whole = {name[:-2] for name in expected if name.endswith("/*")}
    assert edited == {name for name in after if name in expected or name.split("/")[0] in whole and "/" in name}


START, MIDDLE, END = 1001, 1002, 1003


def test_f_strings_of_later_pythons_are_the_strings_of_3_11(monkeypatch):
    """As Python 3.12 tokenizes f"a {x!r:>{w}} {f'{y}'}"; 3.11 has one string."""
    monkeypatch.setattr(code, "FSTRING_START", START)
    monkeypatch.setattr(code, "FSTRING_END", END)
    source = "z = f\"a {x!r:>{w}} {f'{y}'}\" + 'b'\n"
    parts = [
        *[(tokenize.NAME, "z"), (tokenize.OP, "=")],
        *[(START, 'f"'), (MIDDLE, "a "), (tokenize.OP, "{"), (tokenize.NAME, "x"), (tokenize.OP, "!")],
        *[(tokenize.NAME, "r"), (tokenize.OP, ":"), (MIDDLE, ">"), (tokenize.OP, "{"), (tokenize.NAME, "w")],
        *[(tokenize.OP, "}"), (tokenize.OP, "}"), (MIDDLE, " "), (tokenize.OP, "{"), (START, "f'"), (tokenize.OP, "{")],
        *[(tokenize.NAME, "y"), (tokenize.OP, "}"), (END, "'"), (tokenize.OP, "}"), (END, '"')],
        *[(tokenize.OP, "+"), (tokenize.STRING, "'b'")],
    ]
    assert list(code.strings_whole(placed(source, parts), source)) == [
        (tokenize.NAME, "z"),
        (tokenize.OP, "="),
        (tokenize.STRING, "f\"a {x!r:>{w}} {f'{y}'}\""),
        (tokenize.OP, "+"),
        (tokenize.STRING, "'b'"),
    ]


def test_an_f_string_over_several_lines_is_whole(monkeypatch):
    monkeypatch.setattr(code, "FSTRING_START", START)
    monkeypatch.setattr(code, "FSTRING_END", END)
    source = 'f"""a\n{é}\n b""" \n'
    tokens = [
        (START, 'f"""', (1, 0), (1, 4), ""),
        (MIDDLE, "a\n", (1, 4), (2, 0), ""),
        (tokenize.OP, "{", (2, 0), (2, 1), ""),
        (tokenize.NAME, "é", (2, 1), (2, 2), ""),
        (tokenize.OP, "}", (2, 2), (2, 3), ""),
        (MIDDLE, "\n b", (2, 3), (3, 2), ""),
        (END, '"""', (3, 2), (3, 5), ""),
    ]
    assert list(code.strings_whole(tokens, source)) == [(tokenize.STRING, 'f"""a\n{é}\n b"""')]


def placed(source: str, parts: list[tuple[int, str]]) -> list[code.Token]:
    """Tokens of a one-line source with their places, found from left to right."""
    tokens, column = [], 0
    for kind, text in parts:
        start = source.index(text, column)
        column = start + len(text)
        tokens.append((kind, text, (1, start), (1, column), source))
    return tokens
