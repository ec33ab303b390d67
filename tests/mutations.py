"""Does tests/test_parameters.py notice a parameter that is ignored? Not a test itself, and too slow for CI.

PYTHONPATH=. python tests/mutations.py [COUNT] [--seed N]

Takes COUNT of all fields that a technique reads in its file (`self.sparsity`), puts the field's value in parameters.yaml
in their place as a constant, in a copy of the project, and runs the case of that field. A mutant that it passes has
survived; it is named.
"""

import argparse
import ast
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import test_parameters

ROOT = Path(__file__).resolve().parents[1]


def places() -> dict[tuple[Path, str, str, str], list[tuple[int, int]]]:
    """(file, field, constant, pytest's name of the case) of every field that a case changes -> (line, column) of reads."""
    values = {
        (section, variant, field): value
        for section, variant, technique in test_parameters.variants()
        for field, _, value in test_parameters.fields(technique)
    }
    found: dict[tuple[Path, str, str, str], list[tuple[int, int]]] = {}
    for section, variant, field in test_parameters.cases():
        technique = test_parameters.params.technique(
            test_parameters.params.SECTIONS.get(section, section), variant, test_parameters.TREE[section][variant]
        )
        file = Path(sys.modules[type(technique).__module__].__file__ or "").resolve()
        reads = [
            (node.lineno, node.col_offset)
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Attribute) and ast.unparse(node) == f"self.{field}"
        ]
        if reads:
            constant = repr(values[section, variant, field])
            found[file.relative_to(ROOT), field, constant, f"{section}-{variant}-{field}"] = reads
    return found


def mutate(file: Path, field: str, constant: str, reads: list[tuple[int, int]]) -> None:
    lines = file.read_text().splitlines(keepends=True)
    for line, column in sorted(reads, reverse=True):
        text = lines[line - 1]
        assert text[column:].startswith(f"self.{field}")
        lines[line - 1] = f"{text[:column]}{constant}{text[column + len(f'self.{field}') :]}"
    file.write_text("".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=20)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    every = places()
    sample = random.Random(chosen.seed).sample(sorted(every), min(chosen.count, len(every)))
    survived = 0
    for file, field, constant, case in sample:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "project"
            shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "artifacts", ".dvc", "models"))
            mutate(copy / file, field, constant, every[file, field, constant, case])
            test = f"tests/test_parameters.py::test_a_changed_field_changes_what_is_written[{case}]"
            command = [sys.executable, "-m", "pytest", "-q", test]
            caught = subprocess.run(command, cwd=copy, capture_output=True).returncode == 1
        survived += not caught
        print("caught  " if caught else "SURVIVED", f"{file} self.{field} -> {constant}", flush=True)
    print(f"{len(sample) - survived} of {len(sample)} caught; {len(every)} fields in all")


if __name__ == "__main__":
    main()
