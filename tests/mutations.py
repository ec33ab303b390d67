"""Does tests/test_parameters.py notice a parameter that is ignored? Not a test itself, and too slow for CI.

PYTHONPATH=. python tests/mutations.py [COUNT] [--seed N]

Takes COUNT of all fields that stages read of their techniques (`self.sparsity`, `p.sparsity`, `technique.sparsity`),
puts the value in parameters.yaml there as a constant, everywhere in the stage's folder, in a copy of the project, and
runs the case of that field. A mutant that it passes survived; it is named.
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
NAMES = ("self", "p", "technique", "settings")  # of a technique, where it is read
Mutant = tuple[Path, str, str, str]  # the technique's file, a field, its value, pytest's name of the case


def mutants() -> list[Mutant]:
    values = {
        (section, variant, field): value
        for section, variant, technique in test_parameters.variants()
        for field, _, value in test_parameters.fields(technique)
    }
    found: list[Mutant] = []
    for section, variant, field in test_parameters.cases():
        technique = test_parameters.params.technique(
            test_parameters.params.SECTIONS.get(section, section), variant, test_parameters.TREE[section][variant]
        )
        if isinstance(values[section, variant, field], test_parameters.params.Parent):
            continue  # reaches its stage as a path of dvc.yaml
        file = Path(sys.modules[type(technique).__module__].__file__ or "").resolve()
        if any(reads(read.read_text(), field) for read in code_of(file, field)):
            constant = repr(values[section, variant, field])
            found.append((file.relative_to(ROOT), field, constant, f"{section}-{variant}-{field}"))
    return sorted(found)


def code_of(technique: Path, field: str) -> list[Path]:
    stage = technique.parent
    loop = (stage.parent / "lib/training").glob("*.py") if field.startswith("training.") else ()
    own = [technique, *(stage / name for name in ("__init__.py", "__main__.py"))]
    return [*own, *(stage / "parts").glob("*.py"), *loop]


def reads(source: str, field: str) -> list[ast.Attribute]:
    wanted = {f"{name}.{field}" for name in NAMES}
    if field.startswith("training."):
        wanted.add(f"p.{field.removeprefix('training.')}")
    return [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Attribute) and ast.unparse(n) in wanted]


def mutate(file: Path, field: str, constant: str) -> None:
    source = file.read_text()
    lines = source.splitlines(keepends=True)
    for node in sorted(reads(source, field), key=lambda node: (node.lineno, node.col_offset), reverse=True):
        line = lines[node.lineno - 1].encode()  # columns count bytes
        lines[node.lineno - 1] = (line[: node.col_offset] + constant.encode() + line[node.end_col_offset :]).decode()
    file.write_text("".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=20)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    every = mutants()
    sample = random.Random(chosen.seed).sample(every, min(chosen.count, len(every)))
    survived = 0
    for file, field, constant, case in sample:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "project"
            shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "artifacts", ".dvc", "models"))
            for read in code_of(copy / file, field):
                mutate(read, field, constant)
            test = f"tests/test_parameters.py::test_a_changed_field_changes_what_is_written[{case}]"
            command = [sys.executable, "-m", "pytest", "-q", test]
            caught = subprocess.run(command, cwd=copy, capture_output=True).returncode == 1
        survived += not caught
        print("caught  " if caught else "SURVIVED", f"{file} {field} -> {constant}", flush=True)
    print(f"{len(sample) - survived} of {len(sample)} caught; {len(every)} fields in all")


if __name__ == "__main__":
    main()
