"""A parameter that changes nothing is a lie: every field of every technique changes what its stage writes.

Each stage runs as dvc.yaml says, in this process, on models of a few hundred thousand weights (parameters.yaml). What
counts as written are the outputs and metrics that DVC keeps. A field that changes none of them stands in WITHOUT, with
the reason.
"""

import copy
import json
import lzma
import re
import shlex
import threading
from collections.abc import Iterator
from contextlib import chdir
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import cyclopts
import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from stages.lib.frame import code, files, params

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
DVC = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
TREE = YAML(typ="safe").load(Path(__file__).with_name("parameters.yaml"))

# What a field becomes where its type alone doesn't tell; keys are ends of "section/variant.field", the longest counts.
OTHER: dict[str, Any] = {
    "data/corpus.source": "more.jsonl",
    "data/problems.source": "given/worked.py",
    "problems.families": {"chain_sum": {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}},
    "instructions.source": "artifacts/data/more-corpus/records",
    "pairs.source": "artifacts/data/more-problems/records",
    ".licence": "another",
    ".text_field": "body",
    "corpus.min_records": 10_000,  # refused
    ".min_records": 10_000,
    ".documents": "data/more-corpus",
    ".problems": "data/more-problems",
    ".examples": 3,
    "sft.examples": "data/problems",
    "lora.examples": "data/problems",
    "dpo.examples": "data/more-pairs",
    ".tokens": "tokenize/same",
    "foreign.tokens": "tokenize/bpe",
    ".model": "pretrain/other",
    ".teacher": "pretrain/other",
    "logits.traces": "data/problems",
    ".traces": "data/more-problems",
}
# Fields that change nothing DVC keeps, and why that is right; keys are ends as above.
WITHOUT: dict[str, str] = {
    ".method": "it is another technique",
    ".training.checkpoint_seconds": "how often a training is saved: a resumed one ends in the same weights",
}


def fields(value: BaseModel, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, annotation, present value) of all fields, those of nested params too where they are given."""
    for name, field in type(value).model_fields.items():
        inner = getattr(value, name)
        if isinstance(inner, BaseModel):
            yield from fields(inner, f"{path}{name}.")
        else:
            yield f"{path}{name}", field.annotation, inner


def cases() -> Iterator[tuple[str, str, str]]:
    for section in TREE:
        stage = params.SECTIONS.get(section, section)
        for variant in params.variants({section: TREE[section]}, stage):
            technique = params.technique(stage, variant, TREE[section][variant])
            yield from ((section, variant, name) for name, *_ in fields(technique))


def longest(table: dict[str, Any], key: str) -> str | None:
    return max((end for end in table if key.endswith(end)), key=len, default=None)


def other(section: str, variant: str, name: str) -> Any:
    """Another value that the field may have."""
    if end := longest(OTHER, f"{section}/{variant}.{name}"):
        return OTHER[end]
    technique = params.technique(params.SECTIONS.get(section, section), variant, TREE[section][variant])
    annotation, value = next((a, v) for n, a, v in fields(technique) if n == name)
    return change(annotation, value)


def change(annotation: Any, value: Any) -> Any:
    choices = [kind for kind in get_args(annotation) or (annotation,) if kind is not NoneType]
    if get_origin(annotation) is Literal or any(get_origin(kind) is Literal for kind in choices):
        literal = annotation if get_origin(annotation) is Literal else next(k for k in choices if get_origin(k) is Literal)
        return next(choice for choice in get_args(literal) if choice != value)
    if isinstance(value, bool) or bool in choices:
        return not value
    if isinstance(value, float):
        return value / 2 if value else 0.5
    if isinstance(value, int):
        return value + 1
    raise AssertionError(f"say in OTHER what {value!r} may become")


class Project:
    """A folder in which stages run one by one, as dvc.yaml says; what they wrote is told by hashes."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "stages").symlink_to(ROOT / "stages")
        corpus = ROOT / "stages/data/corpus/moby-dick.jsonl.xz"
        with lzma.open(corpus, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line, _ in zip(lines, range(120), strict=False)]
        for name, part in {"texts": rows[:60], "more": rows[60:]}.items():
            texts = [{"id": row["id"], "text": row["text"][:1200], "body": row["text"][300:1500]} for row in part]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
        code.write(folder / "artifacts/code")
        self.tree = copy.deepcopy(TREE)

    def run(self, section: str, variant: str, entry: Any) -> dict[str, str]:
        """Hashes of the outputs and metrics of one variant with this entry."""
        tree = copy.deepcopy(self.tree)
        tree[section][variant] = entry
        YAML().dump(tree, self.folder / "params.yaml")
        stage, key, item = (variant, "teacher", tree["eval"]["models"]["teacher"]) if section == "eval" else (section, variant, entry)
        definition = DVC[stage]["do"]

        def fill(text: str) -> str:
            return re.sub(r"\$\{([\w.]+)\}", lambda found: value(found[1]), text)

        def value(name: str) -> str:
            node: Any = {"key": key, "item": item, **tree}
            for part in name.split("."):
                node = node[part]
            return str(node)

        python, option, module, *arguments = shlex.split(fill(definition["cmd"]))
        assert (python, option) == ("python", "-m")
        with chdir(self.folder):
            outs = [Path(fill(out)) for out in [*definition.get("outs", []), *definition["metrics"]]]
            cyclopts.App(default_command=import_module(f"{module}.__main__").main)(arguments, exit_on_error=False)
            return {str(out): files.digest(out) for out in outs}

    def given(self) -> None:
        """What comes from outside: a tokenizer and a model in folders, another file of worked solutions."""
        for name, made in {"tokenizer": "tokenize/bpe/tokenizer", "model": "pretrain/teacher/model"}.items():
            shutil.copytree(self.folder / "artifacts" / made, self.folder / "given" / name)
        pinned = {"source": "given/tokenizer", "sha256": files.digest(self.folder / "given/tokenizer")}
        self.tree["tokenize"]["same"]["external"] = pinned
        pinned = {"source": "given/model", "sha256": files.digest(self.folder / "given/model")}
        self.tree["pretrain"]["given"]["external"] = pinned


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> tuple[Project, dict[str, dict[str, str]]]:
    """The lifecycle of parameters.yaml, run once, and what each variant wrote."""
    project = Project(tmp_path_factory.mktemp("parameters"))
    written: dict[str, dict[str, str]] = {}
    todo = [(section, variant) for section in TREE for variant in params.variants({section: TREE[section]}, params.SECTIONS.get(section, section))]
    ...
    return project, written
