"""params.yaml -> validated, frozen techniques. Nothing else in the stages reads params.yaml.

A stage checks its own variant and that its parents are there; the flow checks the whole file before the first stage
works, so that a typo in the last stage is found at once and yet a broken exporter never stops `prune`.
"""

import re
from collections.abc import Iterable, Mapping
from importlib import import_module
from inspect import isabstract
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, NonNegativeInt, PositiveInt, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema
from ruamel.yaml import YAML

from stages.lib.frame.errors import UserError

PARAMS_FILE = Path("params.yaml")
STAGES = ("data", "tokenize", "pretrain", "align", "traces", "distill", "prune", "quantize", "export", "eval")
# A section of its own for some variants of a stage -> the stage.
SECTIONS = {"hub": "data", "rlhf": "align", "endpoints": "traces"}
BESIDE = ("compare", "gates", "retrain", "runners")  # what params.yaml may hold besides variants
CHAMPION = "champion"  # champion/NAME as a parent: the champion of a registered model (flows/inherit.py)
MODELS = "models"  # of eval: what is measured; its other keys are measures
NAME = "[A-Za-z0-9_][A-Za-z0-9_-]*"  # a folder, an argument in a shell, a step of a path with dots in DVC's params

Share = Annotated[float, Field(gt=0, lt=1)]
Tree = Mapping[str, Any]  # params.yaml as it was read


class Params(BaseModel):
    """Base of every params class: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def refuse_idle(self, name: str, where: str) -> None:
        """For validators: refuse a value that changes nothing in this combination; the default may stand there."""
        if (value := getattr(self, name)) != (default := type(self).model_fields[name].default):
            raise ValueError(f"{name} is {value!r}, but it counts only {where}: leave it out (default {default!r})")


class Parent(str):
    """The name of another variant, "stage/variant"; dvc.yaml turns it into the path of its artefact."""

    stages = STAGES  # whose variants it may be
    needs = ""  # a parameter that the other variant must have set

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(cls.parse, core_schema.str_schema())

    @classmethod
    def parse(cls, name: str) -> "Parent":
        if not re.fullmatch(f"[a-z]+/{NAME}", name):
            raise PydanticCustomError("parent", "it must be stage/variant")
        return cls(name)


class Records(Parent):
    """A variant that leaves documents, problems or examples."""

    stages = ("data",)


class Examples(Parent):
    """The same, or a teacher's replies."""

    stages = ("data", "traces")


class Tokens(Parent):
    """A variant that leaves a tokenizer and rows of its tokens."""

    stages = ("tokenize",)


class Model(Parent):
    """A variant that leaves a model, in whatever format."""

    stages = ("pretrain", "align", "distill", "prune", "quantize", "export")


class Start(Model):
    """A model that training goes on from: another variant's, or a champion's of the model registry."""

    stages = (*Model.stages, CHAMPION)


class Exported(Parent):
    stages = ("export",)


class Technique(Params):
    """What each file of a stage's folder holds one of: its params and its methods, as the stage's base class asks."""

    def section(self) -> str:
        """Where its variants stand in params.yaml: under the stage, or in one of SECTIONS."""
        return type(self).__module__.split(".")[1]


class Variant(Technique):
    """One named entry under a stage: which technique, on which parents."""

    method: str


class Calibration(Params):
    """Which rows of the token artefact a data-driven technique may look at."""

    rows: PositiveInt = 128
    seed: NonNegativeInt = 0


Contract = TypeVar("Contract", bound=Technique)


def load(contract: type[Contract], variant: str, file: Path = PARAMS_FILE) -> Contract:
    """The technique of one variant with its checked params, e.g. load(Pruning, "wanda-50").

    `contract` is the base class in stages/STAGE/__init__.py; the technique is the class in stages/STAGE/METHOD.py.
    """
    tree, stage = read(file), contract.__module__.split(".")[1]
    found = variants(tree, stage)
    if variant not in found:
        raise UserError(f"{file}: no variant '{variant}' under '{stage}'; there are: {names(found)}")
    section = next(name for name in sections(stage) if variant in tree.get(name, {}))
    checked = technique(stage, variant, found[variant], file, section)
    assert isinstance(checked, contract)
    check_parents(tree, f"{section}.{variant}", checked, file)
    return checked


def read(file: Path = PARAMS_FILE) -> dict[str, Any]:
    """The file as it stands; only that it is a mapping of mappings is checked."""
    if not file.is_file():
        raise UserError(f"{file.absolute()} is missing: run from the project's folder")
    try:
        tree = YAML(typ="safe").load(file)  # the reader DVC uses: `1e-4` is a number here
    except Exception as error:  # ruamel has no one base class for what can be wrong with a file
        raise UserError(f"{file} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{file} must be a mapping of stages, not {tree!r}")
    for section in (*STAGES, *SECTIONS):
        check_mapping(f"{file}: {section}", tree.get(section, {}))
    check_mapping(f"{file}: eval.{MODELS}", tree.get("eval", {}).get(MODELS, {}))
    return tree


def variants(tree: Tree, stage: str) -> dict[str, Any]:
    """Name -> entry of every variant of a stage, in the file's order; of eval the measures."""
    found = {name: entry for section in sections(stage) for name, entry in tree.get(section, {}).items()}
    return {name: entry for name, entry in found.items() if stage != "eval" or name != MODELS}


def sections(stage: str) -> list[str]:
    """Where the variants of a stage stand."""
    return [stage, *(section for section, of in SECTIONS.items() if of == stage)]


def models(tree: Tree) -> dict[str, str]:
    """Name -> "stage/variant" of every model that is evaluated, in the file's order."""
    return tree.get("eval", {}).get(MODELS, {})


def check(tree: Tree, file: Path = PARAMS_FILE) -> None:
    """Every variant of every stage: known technique, known keys, right types, existing parents."""
    allowed = (*STAGES, *SECTIONS, *BESIDE)
    if unknown := [section for section in tree if section not in allowed]:
        raise UserError(f"{file}: unknown stage {names(unknown)}; there are: {names(allowed)}")
    if missing := [stage for stage in STAGES if stage not in tree]:
        raise UserError(f"{file}: {missing[0]} is missing, which dvc.yaml wants; without variants it is `{{}}`")
    for section, stage in SECTIONS.items():
        if twice := [name for name in tree.get(section, {}) if name in tree[stage]]:
            raise UserError(f"{file}: {names(twice)} stands under {section} and under {stage}: rename one")
    for section in (*STAGES, *SECTIONS):
        stage = SECTIONS.get(section, section)
        for variant, entry in variants({section: tree.get(section, {})}, stage).items():
            checked = technique(stage, variant, entry, file, section)
            if (own := checked.section()) != section:
                raise UserError(f"{file}: {variant} stands under `{section}`; such a one belongs under `{own}`")
            check_parents(tree, f"{section}.{variant}", checked, file)
    for name, model in models(tree).items():
        check_name(f"{file}: eval.{MODELS}", name)
        check_parent(tree, f"eval.{MODELS}.{name}", model, file, Model.stages)
    every = [measure for measure in techniques("eval") if MODELS not in technique_class("eval", measure).model_fields]
    if models(tree) and (missing := [measure for measure in every if measure not in tree["eval"]]):
        raise UserError(f"{file}: eval.{missing[0]} is missing; every model is measured by: {names(every)}")
    check_own_models(tree, file)
    check_compare(tree, file)


def check_own_models(tree: Tree, file: Path = PARAMS_FILE) -> None:
    """A measure may have `models` of its own; what it says of a name is shown beside what the others say of it."""
    for measure, entry in variants(tree, "eval").items():
        for name, model in entry.get(MODELS, {}).items():
            place = f"eval.{measure}.{MODELS}"
            check_evaluated(tree, place, name, file)
            if model != (same := models(tree)[name]):
                raise UserError(f"{file}: {place}.{name} is '{model}'; in eval.{MODELS} it is '{same}'")


def check_compare(tree: Tree, file: Path = PARAMS_FILE) -> None:
    """`compare`: path -> evaluations that differ only in their seeds, paired by position; the first is the baseline."""
    if "compare" not in tree:
        return
    place, paths = f"{file}: compare", tree["compare"]
    if not isinstance(paths, dict) or len(paths) < 2:
        raise UserError(f"{place} is {paths!r}; it must name two paths or more, each with its evaluations")
    for path, seeds in paths.items():
        check_name(place, path)
        if not isinstance(seeds, list) or len(set(map(str, seeds))) < max(2, len(seeds)):
            raise UserError(f"{place}.{path} is {seeds!r}; it must list two different evaluations or more, one a seed")
        for evaluated in seeds:
            check_evaluated(tree, f"compare.{path}", evaluated, file)
    if len({len(seeds) for seeds in paths.values()}) > 1:
        counts = ", ".join(f"{path} has {len(seeds)}" for path, seeds in paths.items())
        raise UserError(f"{place} pairs evaluations by position, so every path needs as many as the first: {counts}")


def check_mapping(place: str, value: object) -> None:
    if not isinstance(value, dict):
        raise UserError(f"{place} is {value!r}; it must be a mapping, without entries `{{}}`")


def check_name(place: str, name: object) -> None:
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise UserError(f"{place}: {name!r} cannot be a name; letters, digits, _ and - can, the last not in front")


def check_evaluated(tree: Tree, place: str, name: object, file: Path = PARAMS_FILE) -> None:
    """Refuse a model that eval doesn't measure."""
    if name not in models(tree):
        raise UserError(f"{file}: {place} is '{name}'; eval.{MODELS} has: {names(models(tree))}")


def check_parents(tree: Tree, place: str, checked: BaseModel, file: Path = PARAMS_FILE) -> None:
    for key, parent in parents(checked).items():
        check_parent(tree, f"{place}.{key}", parent, file, parent.stages)
        check_needs(tree, f"{place}.{key}", parent, file)


def check_parent(tree: Tree, place: str, parent: object, file: Path, stages: tuple[str, ...]) -> None:
    stage, _, variant = str(parent).partition("/")
    if stage not in stages:
        raise UserError(f"{file}: {place} is '{parent}'; it must be stage/variant, stages are: {names(stages)}")
    if stage != CHAMPION and variant not in variants(tree, stage):
        raise UserError(f"{file}: {place} is '{parent}'; '{stage}' has: {names(variants(tree, stage))}")


def check_needs(tree: Tree, place: str, parent: Parent, file: Path = PARAMS_FILE) -> None:
    """A parent may need what its variant can leave out: an adapter `lora`."""
    if not parent.needs:
        return
    entries = [(f"{stage}/{name}", entry) for stage in STAGES for name, entry in variants(tree, stage).items()]
    able = [name for name, entry in entries if isinstance(entry, dict) and entry.get(parent.needs) is not None]
    if parent not in able:
        raise UserError(f"{file}: {place} is '{parent}', which has no `{parent.needs}`; with it: {names(able)}")


def parents(params: BaseModel) -> dict[str, Parent]:
    """The fields of a variant that name another variant."""
    return {key: value for key in type(params).model_fields if isinstance(value := getattr(params, key), Parent)}


def technique(
    stage: str, variant: str, entry: object, file: Path = PARAMS_FILE, section: str | None = None
) -> Technique:
    """The technique of an entry of params.yaml, checked by itself. `method` says which; of eval's measures the name."""
    place = f"{file}: {section or stage}.{variant}"
    check_name(f"{file}: {section or stage}", variant)
    if not isinstance(entry, dict):
        raise UserError(f"{place} must be a mapping, not {entry!r}")
    if stage != "eval" and "method" not in entry:
        raise UserError(f"{place}.method is missing; there are: {names(techniques(stage))}")
    key, method = (place, variant) if stage == "eval" else (f"{place}.method", entry["method"])
    if method not in techniques(stage):
        raise UserError(f"{key} is {method!r}; there are: {names(techniques(stage))}")
    kind = technique_class(stage, method)
    try:
        return kind.model_validate(entry)
    except ValidationError as error:
        raise UserError("\n".join(complaint(place, kind, wrong) for wrong in error.errors())) from None


def technique_class(stage: str, method: str) -> type[Technique]:
    """The one technique of stages/STAGE/METHOD.py."""
    module = import_module(f"stages.{stage}.{method}")
    classes = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    [found] = [kind for kind in classes if issubclass(kind, Technique) and not isabstract(kind)]
    return found


def complaint(place: str, schema: type[BaseModel], error: ErrorDetails) -> str:
    """One line for one wrong value: where, what it is, what is allowed."""
    where = ".".join([place, *map(str, error["loc"])])
    if error["type"] == "extra_forbidden":
        return f"{where} is not a parameter; there are: {names(fields(schema, error['loc'][:-1]))}"
    if error["type"] == "missing":
        return f"{where} is missing"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"{where}: {message}" if isinstance(error["input"], dict) else f"{where} is {error['input']!r}: {message}"


def fields(schema: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Names of the parameters at a place inside a params class, e.g. ("training",)."""
    for name in path:
        annotation = schema.model_fields[str(name)].annotation
        inside = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        schema = next(kind for kind in inside if issubclass(kind, BaseModel))
    return list(schema.model_fields)


def techniques(stage: str) -> list[str]:
    """Every file of the stage's folder but those of the stage itself."""
    folder = Path(__file__).parents[2] / stage
    return sorted(file.stem for file in folder.glob("*.py") if not file.stem.startswith("_"))


def names(values: Iterable[object]) -> str:
    return ", ".join(map(str, values)) or "none"
