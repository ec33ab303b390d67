"""The rules of the layout, as tests."""

import ast
import inspect
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.lib.frame import code, params
from stages.lib.frame.params import Technique

DVC = YAML(typ="safe").load(Path("dvc.yaml"))["stages"]
STAGES = (*params.STAGES, "report")
MODULES = sorted(Path("stages").rglob("*.py"))
AROUND = sorted(file for folder in ("flows", "apps") for file in Path(folder).rglob("*.py"))
TECHNIQUES = [(stage, name) for stage in params.STAGES for name in params.techniques(stage)]
LOW = ["frame", "store", "text", "nets"]  # rooms of lib, each may use those before it
HIGH = ["runtimes", "sampling", "training"]  # which may use all those, and not each other
MAY_USE = {room: {room, *LOW[: LOW.index(room)]} for room in LOW} | {room: {room, *LOW} for room in HIGH}
LIGHT = {"stages", "pydantic", "pydantic_core", "torch", "numpy", "cyclopts"}
TENSORS = {"torch", "numpy", "transformers", "safetensors", "tokenizers"}

every_module = pytest.mark.parametrize("file", MODULES, ids=str)
every_technique = pytest.mark.parametrize(("stage", "method"), TECHNIQUES, ids=str)
every_step = pytest.mark.parametrize("name", DVC)


def syntax(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imported(file: Path, top_only: bool = False) -> set[str]:
    """Names of modules, and of what is taken from them; also what only type checkers import."""
    tree, names = syntax(file), set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def packages(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(file)}


def calls(file: Path) -> list[tuple[str, str]]:
    """(function, first argument) of every call of a plain name."""
    nodes = [node for node in ast.walk(syntax(file)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return [(node.func.id, ast.unparse(node.args[0]) if node.args else "") for node in nodes]  # pyright: ignore


def parts_of_stages(file: Path) -> set[tuple[str, ...]]:
    """("prune", "wanda") or ("lib", "nets", ...) for everything under stages that a file imports."""
    return {tuple(name.split(".")[1:]) for name in imported(file) if name.startswith("stages.")}


# Arrows


@pytest.mark.parametrize("file", sorted(Path("stages/lib").rglob("*.py")), ids=str)
def test_a_room_of_lib_uses_those_below_it(file):
    room = file.parts[2] if len(file.parts) > 3 else None
    used = {path[1] for path in parts_of_stages(file) if len(path) > 1}
    assert {path[0] for path in parts_of_stages(file)} <= {"lib"}, "lib knows no stage"
    assert used <= (MAY_USE[room] if room else set())


@pytest.mark.parametrize("file", [file for file in MODULES if file.parts[1] in STAGES], ids=str)
def test_a_stage_uses_lib_and_itself(file):
    assert {path[0] for path in parts_of_stages(file)} <= {"lib", file.parts[1]}


@pytest.mark.parametrize("file", AROUND, ids=str)
def test_nobody_outside_uses_the_parts_of_a_stage(file):
    assert not [path for path in parts_of_stages(file) if path[0] in STAGES and path[1:2] == ("parts",)]


def test_modules_import_each_other_in_no_circle():
    """Function-level imports included, and the packages that a module lies in."""
    graph = {file: set(code.neighbours(file)) - {file} for file in (code.ROOT / file for file in MODULES)}
    list(TopologicalSorter(graph).static_order())


@every_module
def test_code_identity_sees_every_import(file):
    """A relative import or one by a name that is computed would not be followed."""
    assert not [node for node in ast.walk(syntax(file)) if isinstance(node, ast.ImportFrom) and node.level]
    if file not in (Path("stages/lib/frame/params.py"), Path("stages/data/problems.py")):  # what DVC passes them
        assert not {"importlib", "importlib.import_module"} & imported(file)
        assert "__import__" not in dict(calls(file))


def test_whatever_is_read_beside_code_is_named_where_it_is_read():
    beside = {file for file in Path("stages").rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}
    named = {found.relative_to(code.ROOT) for file in MODULES for found in code.neighbours(code.ROOT / file)}
    assert beside - named == set(Path("stages/data/corpus").iterdir())  # a source: dvc.yaml hands it over


# Who knows what


@every_module
def test_stage_code_knows_nothing_of_orchestration(file):
    assert not packages(file) & ({"prefect", "dvc"} | ({"mlflow"} if file.name != "tracking.py" else set()))


@pytest.mark.parametrize("file", [*MODULES, *AROUND], ids=str)
def test_mlflow_is_spoken_to_in_one_file(file):
    assert "mlflow" not in packages(file) or file == Path("stages/lib/frame/tracking.py")


@pytest.mark.parametrize("file", sorted(Path("stages/lib/frame").glob("*.py")), ids=str)
def test_the_frame_knows_no_tensor(file):
    assert not packages(file) & TENSORS


@every_module
def test_library_code_never_ends_the_process(file):
    """A UserError does, in `errors.command` alone."""
    ends = {"SystemExit", "sys.exit", "exit", "os._exit"}
    raised = {ast.unparse(node) for node in ast.walk(syntax(file)) if isinstance(node, ast.Name | ast.Attribute)} & ends
    assert not raised or file == Path("stages/lib/frame/errors.py")


# Techniques


@every_technique
def test_a_technique_is_one_class_that_keeps_its_stages_contract(stage, method):
    technique = params.technique_class(stage, method)
    assert [kind for kind in technique.__mro__ if kind.__module__ == f"stages.{stage}" and issubclass(kind, Technique)]
    assert not inspect.isabstract(technique)
    assert re.sub("_", "", method) == technique.__name__.lower(), "the class has the file's name"


@every_module
def test_a_technique_is_asked_by_its_contract(file):
    asked = [(function, what) for function, what in calls(file) if function in ("hasattr", "getattr")]
    assert not [call for call in asked if re.match(r"technique\b|self$", call[1]) and call[0] == "hasattr"]
    assert not [call for call in asked if re.match(r"technique\b", call[1])]


@every_technique
def test_a_technique_starts_fast(stage, method):
    """At the top it imports the standard library, pydantic and torch; what is heavier where it is used."""
    top = {name.split(".")[0] for name in imported(Path("stages", stage, f"{method}.py"), top_only=True)}
    assert not top - LIGHT - set(sys.stdlib_module_names)


@pytest.mark.parametrize("stage", params.STAGES)
def test_the_techniques_of_a_stage_are_tested_by_existing(stage):
    assert "techniques(" in Path("tests", stage, "test_techniques.py").read_text()


@pytest.mark.parametrize("file", [*MODULES, *AROUND], ids=str)
def test_a_module_says_what_it_is(file):
    assert ast.get_docstring(syntax(file))


def test_a_technique_names_its_source():
    of_research = [pair for pair in TECHNIQUES if pair[0] in ("align", "distill", "prune", "quantize", "traces")]
    files = [Path("stages", stage, f"{method}.py") for stage, method in of_research]
    assert [file for file in files if "arXiv:" not in (ast.get_docstring(syntax(file)) or "")] == []


# dvc.yaml


def body(name: str) -> dict:
    return DVC[name].get("do", DVC[name])


def test_the_stages_are_the_folders_and_the_dag():
    made = [name for name in params.STAGES if name not in ("traces", "eval")]
    made[1:1] = ["hub"]
    made[made.index("distill") : made.index("distill")] = ["rlhf", "traces", "endpoints"]
    assert list(DVC) == ["code", *made, *params.techniques("eval"), "report"]
    assert {file.parent.name for file in Path("stages").glob("*/__main__.py")} == set(STAGES)
    assert {module(name).parent.name for name in DVC} - {"frame"} == set(STAGES)


def module(name: str) -> Path:
    """The file that a step of dvc.yaml runs, the first where it runs several."""
    place = Path(*re.search(r"python -m ([\w.]+)", str(body(name)["cmd"]))[1].split("."))
    return place / "__main__.py" if place.is_dir() else place.with_suffix(".py")


@every_step
def test_dvc_yaml_names_no_code(name):
    """What of the code a step depends on is in the file of its technique."""
    assert not [place for place in body(name).get("deps", []) if place.startswith("stages/")]
    assert ".py" not in body(name)["cmd"]


@pytest.mark.parametrize("name", [name for name in DVC if name != "code"])
def test_a_step_depends_on_its_techniques_code_and_hands_it_over(name):
    stage = module(name).parent.name
    technique = {"eval": f"eval/{name}", "report": "report"}.get(stage, f"{stage}/${{item.method}}")
    file = f"artifacts/code/{technique}.json"
    assert body(name)["deps"][0] == file
    assert f" --code {file} " in body(name)["cmd"]


@pytest.mark.parametrize("name", [name for name in DVC if name != "code"])
def test_a_step_gives_what_its_main_takes(name):
    """Every argument and every option without a default, and no others."""
    [main] = [node for node in syntax(module(name)).body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    options = {f"--{option.arg.replace('_', '-')}" for option in main.args.kwonlyargs}
    optional = {
        f"--{option.arg.replace('_', '-')}"
        for option, default in zip(main.args.kwonlyargs, main.args.kw_defaults, strict=True)
        if default is not None
    }
    words = body(name)["cmd"].split()[3:]
    given = [word for word in words if word.startswith("--")]
    arguments = words[: words.index(given[0])]
    assert len(given) == len(set(given)) and options - optional <= set(given) <= options
    assert len(arguments) == len(main.args.args)
    assert "--params-file" in optional


@every_step
def test_what_a_step_is_told_to_read_is_what_it_depends_on_and_quoted(name):
    """Names come from a person, and the command from a shell."""
    if name in ("code", "report"):
        return
    cmd = body(name)["cmd"]
    read = set(re.findall(r"'(artifacts/\$\{(?:item|eval)\S*)'", cmd)) | set(re.findall(r"--source '(\S+)'", cmd))
    by_itself = {"${item.source}", "${eval.harness.tasks.source}"}  # no path of a person's own stands in a command
    assert read == set(body(name)["deps"][1:]) - (by_itself if name in ("data", "harness") else set())
    assert all(word.startswith(("'", "artifacts/code/")) for word in cmd.split() if "${" in word)


@every_module
def test_paths_live_in_dvc_yaml(file):
    docstrings = {node.value.value for node in ast.walk(syntax(file)) if is_docstring(node)}
    texts = {node.value for node in ast.walk(syntax(file)) if isinstance(node, ast.Constant)} - docstrings
    assert not [text for text in texts if isinstance(text, str) and "artifacts/" in text]


def is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
