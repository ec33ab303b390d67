"""The rules of the layout, as tests."""

import ast
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.lib.frame import params

DVC = YAML(typ="safe").load(Path("dvc.yaml"))["stages"]
MODULES = sorted(Path("stages").rglob("*.py"))
TECHNIQUES = [(stage, name) for stage in params.STAGES for name in params.techniques(stage)]
LIGHT = {"stages", "pydantic", "pydantic_core", "torch", "numpy", "cyclopts"}


def imported(file: Path, top_only: bool = False) -> set[str]:
    tree = ast.parse(file.read_text())
    names = set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def closure(file: Path, seen: set[Path] | None = None) -> set[Path]:
    """The files under stages/ that `file` imports, directly or not."""
    seen = set() if seen is None else seen
    for name in imported(file):
        path = Path(*name.split("."))
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if name.startswith("stages.") and candidate.exists() and candidate not in seen:
                seen.add(candidate)
                closure(candidate, seen)
    return seen


def dependencies(stage: str, method: str) -> list[Path]:
    return [Path(d.replace("${item.method}", method)) for d in DVC[stage]["do"]["deps"] if d.startswith("stages/")]


def test_the_ten_stages_are_the_folders_and_the_dag():
    assert sorted(file.parent.name for file in Path("stages").glob("*/__main__.py")) == sorted(params.STAGES)
    assert list(DVC) == [*params.STAGES, "report"]


@pytest.mark.parametrize(("stage", "method"), TECHNIQUES, ids=lambda name: str(name))
def test_a_change_in_any_imported_file_reruns_the_stage(stage, method):
    starts = [Path("stages", stage, f"{name}.py") for name in ("__main__", "__init__", method)]
    needed = set(starts).union(*(closure(file) for file in starts)) - {Path("stages/lib/__init__.py")}
    if stage != "eval":  # its techniques are all run, whatever the variant
        needed -= {Path("stages", stage, f"{name}.py") for name in params.techniques(stage) if name != method}
    declared = dependencies(stage, method)
    assert not [f for f in needed if f not in declared], f"dvc.yaml: {stage} would not rerun for these"


@pytest.mark.parametrize("stage", params.STAGES)
def test_no_dependency_is_declared_in_vain(stage):
    methods = params.techniques(stage)
    starts = [Path("stages", stage, f"{name}.py") for name in ("__main__", "__init__", *methods)]
    used = set(starts).union(*(closure(file) for file in starts))
    assert not [d for d in dependencies(stage, methods[0]) if d not in used], f"dvc.yaml: {stage} does not use these"


@pytest.mark.parametrize("file", MODULES, ids=str)
def test_stage_code_knows_nothing_of_orchestration(file):
    banned = {"prefect", "dvc"} | ({"mlflow"} if file != Path("stages/lib/frame/tracking.py") else set())
    assert not {name.split(".")[0] for name in imported(file)} & banned


@pytest.mark.parametrize("file", MODULES, ids=str)
def test_paths_live_in_dvc_yaml(file):
    strings = [n.value for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Constant)]
    docstrings = ast.get_docstring(ast.parse(file.read_text())) or ""
    for text in strings:
        if isinstance(text, str) and text.strip() not in docstrings:
            assert "artifacts/" not in text, text


@pytest.mark.parametrize(("stage", "method"), TECHNIQUES, ids=lambda name: str(name))
def test_a_technique_starts_fast(stage, method):
    """At the top it imports the standard library, pydantic and torch; what is heavier where it is used."""
    import sys

    top = {name.split(".")[0] for name in imported(Path("stages", stage, f"{method}.py"), top_only=True)}
    assert not top - LIGHT - set(sys.stdlib_module_names)


@pytest.mark.parametrize("file", sorted(Path("stages").glob("*/__main__.py")), ids=str)
def test_a_stage_fits_on_two_screens(file):
    assert len(file.read_text().splitlines()) <= 110


@pytest.mark.parametrize("file", [*MODULES, *Path("flows").glob("*.py")], ids=str)
def test_a_module_is_short_and_says_what_it_is(file):
    assert len(file.read_text().splitlines()) <= 250
    assert ast.get_docstring(ast.parse(file.read_text()))


@pytest.mark.parametrize(("stage", "method"), TECHNIQUES, ids=lambda name: str(name))
def test_a_technique_is_tested(stage, method):
    """By its stage's contract test, by existing; and by name where it has mathematics of its own."""
    assert Path("tests", stage, "test_techniques.py").exists()


def test_a_technique_names_its_source():
    unnamed = [
        f"{stage}/{method}"
        for stage, method in TECHNIQUES
        if stage in ("align", "distill", "prune", "quantize", "traces")
        and "arXiv:" not in (ast.get_docstring(ast.parse(Path("stages", stage, f"{method}.py").read_text())) or "")
    ]
    assert unnamed == []
