"""Does tests/test_parameters.py notice a parameter that is ignored? Not a test itself, and too slow for CI.

PYTHONPATH=. python tests/mutations.py [COUNT] [--seed N]

Takes COUNT of all places where a technique reads one of its own fields (`self.sparsity`), puts the field's value in
parameters.yaml there as a constant in a copy of the project, and runs the cases of that field. A mutant that they pass
has survived; it is named with its line.
"""

import argparse
import ast
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import test_parameters

ROOT = Path(__file__).resolve().parents[1]


def places() -> Iterator[tuple[Path, int, int, str, str]]:
    """(file, line, column, constant, pytest's name of the case) of every read of an own field that a case changes."""
    values = {
        (section, variant, field): value
        for section, variant, technique in test_parameters.variants()
        for field, _, value in test_parameters.fields(technique)
    }
    for section, variant, field in test_parameters.cases():
        technique = test_parameters.params.technique(
            test_parameters.params.SECTIONS.get(section, section), variant, test_parameters.TREE[section][variant]
        )
        file = Path(sys.modules[type(technique).__module__].__file__ or "").resolve()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) == f"self.{field}":
                constant = repr(values[section, variant, field])
                yield file.relative_to(ROOT), node.lineno, node.col_offset, constant, f"{section}-{variant}-{field}"


def mutate(file: Path, line: int, column: int, field: str, constant: str) -> None:
    lines = file.read_text().splitlines(keepends=True)
    text = lines[line - 1]
    assert text[column:].startswith(f"self.{field}")
    lines[line - 1] = f"{text[:column]}{constant}{text[column + len(f'self.{field}') :]}"
    file.write_text("".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=20)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    every = sorted(set(places()))
    sample = random.Random(chosen.seed).sample(every, min(chosen.count, len(every)))
    survived = 0
    for file, line, column, constant, case in sample:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "project"
            shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "artifacts", ".dvc"))
            field = case.rsplit("-", 1)[1]
            mutate(copy / file, line, column, field, constant)
            case = f"tests/test_parameters.py::test_a_changed_field_changes_what_is_written[{case}]"
            command = [sys.executable, "-m", "pytest", "-q", case]
            caught = subprocess.run(command, cwd=copy, capture_output=True).returncode == 1
        survived += not caught
        print("caught  " if caught else "SURVIVED", f"{file}:{line} self.{field} -> {constant}", flush=True)
    print(f"{len(sample) - survived} of {len(sample)} caught; {len(every)} places in all")


if __name__ == "__main__":
    main()
