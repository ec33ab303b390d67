"""params.yaml -> validated, frozen objects. Nothing else in the stages reads params.yaml.

Loading one variant checks the whole file, so that a typo in the last stage is found before the first one works.
"""

import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError
from ruamel.yaml import YAML

PARAMS_FILE = Path("params.yaml")
STAGES = ("data", "tokenize", "pretrain", "align", "traces", "distill", "prune", "quantize", "export", "eval")
BESIDE = ("compare", "gates")  # what params.yaml may hold besides the stages
NAME = "[A-Za-z0-9._-]+"

Share = Annotated[float, Field(gt=0, lt=1)]


class Params(BaseModel):
    """Base of every params class: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Parent(str):
    """The name of another variant, "stage/variant"; dvc.yaml turns it into the path of its artefact."""

    needs = ""  # a parameter that the other variant must have set

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        pattern = core_schema.str_schema(pattern=f"^[a-z]+/{NAME}$")
        return core_schema.no_info_after_validator_function(cls, pattern)


class Variant(Params):
    """One named entry under a stage: which technique, on which parents."""

    method: str


class Calibration(Params):
    """Which rows of the token artefact a data-driven technique may look at."""

    rows: PositiveInt = 128
    seed: NonNegativeInt = 0


def load(stage: str, variant: str) -> tuple[ModuleType, Any]:
    """The technique module and the checked params of one variant, e.g. load("prune", "wanda-50").

    The technique is the file stages/<stage>/<method>.py; a stage whose variants name no method (eval) is its own.
    """
    tree = read()
    check(tree)
    if variant not in tree.get(stage, {}):
        raise SystemExit(f"{PARAMS_FILE}: no variant '{variant}' under '{stage}'; there are: {names(tree.get(stage))}")
    return technique(stage, variant, tree[stage][variant])


def read() -> dict[str, Any]:
    if not PARAMS_FILE.is_file():
        raise SystemExit(f"{PARAMS_FILE.absolute()} is missing: run from the project's folder")
    try:
        return YAML(typ="safe").load(PARAMS_FILE)  # the reader DVC uses: `1e-4` is a number here
    except Exception as error:  # ruamel has no one base class for what can be wrong with a file
        raise SystemExit(f"{PARAMS_FILE} is not YAML: {error}") from error


def check(tree: Mapping[str, Any]) -> None:
    """Every variant of every stage: known technique, known keys, right types, existing parents."""
    if unknown := [stage for stage in tree if stage not in (*STAGES, *BESIDE)]:
        raise SystemExit(f"{PARAMS_FILE}: unknown stage {names(unknown)}; there are: {names((*STAGES, *BESIDE))}")
    for stage in STAGES:
        for variant, entry in (tree.get(stage) or {}).items():
            _, checked = technique(stage, variant, entry)
            for key, parent in parents(checked).items():
                check_parent(tree, f"{stage}.{variant}.{key}", parent)
                check_needs(tree, f"{stage}.{variant}.{key}", parent)
    check_compare(tree)


def check_compare(tree: Mapping[str, Any]) -> None:
    """`compare`: path -> evaluations that differ only in their seeds, paired by position; the first is the baseline."""
    if "compare" not in tree:
        return
    place, paths = f"{PARAMS_FILE}: compare", tree["compare"]
    if not isinstance(paths, dict) or len(paths) < 2:
        raise SystemExit(f"{place} is {paths!r}; it must name two paths or more, each with its evaluations")
    for path, seeds in paths.items():
        if not re.fullmatch(NAME, str(path)):
            raise SystemExit(f"{place}: {path!r} cannot name a path; letters, digits and . _ - can")
        if not isinstance(seeds, list) or len(set(map(str, seeds))) < max(2, len(seeds)):
            raise SystemExit(f"{place}.{path} is {seeds!r}; it must list two different evaluations or more, one a seed")
        for variant in seeds:
            check_parent(tree, f"compare.{path}", f"eval/{variant}")
    if len({len(seeds) for seeds in paths.values()}) > 1:
        counts = ", ".join(f"{path} has {len(seeds)}" for path, seeds in paths.items())
        raise SystemExit(f"{place} pairs evaluations by position, so every path needs as many as the first: {counts}")


def check_parent(tree: Mapping[str, Any], place: str, parent: str) -> None:
    stage, variant = parent.split("/", 1)
    if stage not in STAGES:
        raise SystemExit(f"{PARAMS_FILE}: {place} is '{parent}'; stages are: {names(STAGES)}")
    if variant not in (tree.get(stage) or {}):
        raise SystemExit(f"{PARAMS_FILE}: {place} is '{parent}'; '{stage}' has: {names(tree.get(stage))}")


def check_needs(tree: Mapping[str, Any], place: str, parent: Parent) -> None:
    """A parent may need what its variant can leave out: an adapter `lora`."""
    each = [(f"{stage}/{name}", entry) for stage in STAGES for name, entry in (tree.get(stage) or {}).items()]
    able = [name for name, entry in each if isinstance(entry, dict) and entry.get(parent.needs) is not None]
    if parent.needs and parent not in able:
        raise SystemExit(f"{PARAMS_FILE}: {place} is '{parent}', which has no `{parent.needs}`; with it: {names(able)}")


def parents(params: BaseModel) -> dict[str, Parent]:
    """The fields of a variant that name another variant."""
    return {key: value for key in type(params).model_fields if isinstance(value := getattr(params, key), Parent)}


def technique(stage: str, variant: str, entry: Any) -> tuple[ModuleType, Any]:
    place = f"{PARAMS_FILE}: {stage}.{variant}"
    if not isinstance(entry, dict):
        raise SystemExit(f"{place} must be a mapping, not {entry!r}")
    module = f"stages.{stage}"
    if stage != "eval":
        method = entry.get("method")
        if method not in techniques(stage):
            raise SystemExit(f"{place}.method is {method!r}; there are: {names(techniques(stage))}")
        module += f".{method}"
    technique = import_module(module)
    try:
        return technique, technique.Params.model_validate(entry)
    except ValidationError as error:
        raise SystemExit("\n".join(complaint(place, technique.Params, each) for each in error.errors())) from None


def complaint(place: str, schema: type[BaseModel], error: Any) -> str:
    """One line for one wrong value: where, what it is, what is allowed."""
    where = ".".join([place, *map(str, error["loc"])])
    if error["type"] == "extra_forbidden":
        return f"{where} is not a parameter; there are: {names(fields(schema, error['loc'][:-1]))}"
    if error["type"] == "missing":
        return f"{where} is missing"
    return f"{where} is {error['input']!r}: {error['msg'].lower()}"


def fields(schema: Any, path: tuple[Any, ...]) -> list[str]:
    """Names of the parameters at a place inside a params class, e.g. ("training",)."""
    for name in path:
        kinds = [schema.model_fields[name].annotation, *get_args(schema.model_fields[name].annotation)]
        schema = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(schema.model_fields)


def techniques(stage: str) -> list[str]:
    """Every file of the stage's folder whose name does not start with an underscore."""
    folder = Path(__file__).parents[1] / stage
    return sorted(file.stem for file in folder.glob("*.py") if not file.stem.startswith("_"))


def names(values: Any) -> str:
    return ", ".join(map(str, values or ())) or "none"
