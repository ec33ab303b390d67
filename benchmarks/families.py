"""Every family through every stage and technique, on random models of some 10^5 weights: what works, what is refused.

python -m benchmarks.families [--families llama,gpt2] [--techniques align,quantize.rtn]

A stage runs in this process as dvc.yaml calls it, on the variants of benchmarks/families.yaml, so every guard of a
stage counts: files are read back in the runtime they ship for. On top of that stands what the metrics must say
(`flaw`). Outcomes: works; refused: the stage's own line; wrong: a metric that says so; crash: an error that is no
refusal. `kl` is parent || result on held-out rows, nats/token.
"""

import contextlib
import copy
import csv
import json
import lzma
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import Any

import cyclopts
import torch
from ruamel.yaml import YAML

from benchmarks import _families, _result
from stages.lib.frame import code, files
from stages.lib.frame.errors import UserError
from stages.lib.store import models

RESULT = Path("benchmarks/results/families.json")
ROOT = Path(__file__).parents[1]
TREE = YAML(typ="safe").load(Path(__file__).with_suffix(".yaml"))
DVC = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
SHARED = ("data", "tokenize")  # the same for every family
GIVEN: dict[str, dict[str, Any]] = {  # random models that no stage makes
    "base": {},
    "student": {"seed": 1},
    "deep": {"num_hidden_layers": 6},
}


def main(*, families: str = "", techniques: str = "", out: Path = RESULT) -> None:
    """Comma-separated names, of techniques as STAGE or STAGE.VARIANT; all others keep the outcome that `out` holds."""
    torch.set_num_threads(1)  # these models are too small to share
    chosen = families.split(",") if families else list(_families.FAMILIES)
    asked = techniques.split(",") if techniques else []
    target = ROOT / out
    found: dict[str, Any] = json.loads(target.read_text()) if target.is_file() else {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        prepare(Path())
        for family in chosen:
            print(family, flush=True)
            own = results(family, asked)
            found = {name: each for name, each in found.items() if name.removesuffix(".kl") not in own} | own
            _result.save(target, found, "torch", "transformers", "llmcompressor")
    print(table(found))


def prepare(folder: Path) -> None:
    """Texts, a tokenizer and rows that all families share."""
    (folder / "stages").symlink_to(ROOT / "stages")
    with lzma.open(ROOT / "stages/data/corpus/moby-dick.jsonl.xz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(60), strict=False)]
    texts = [{"id": row["id"], "text": row["text"][:1500]} for row in rows]
    (folder / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    code.write(folder / "artifacts/code")
    for section in SHARED:
        for variant in TREE[section]:
            run(TREE, section, variant)


def results(family: str, asked: list[str]) -> dict[str, Any]:
    """Outcome and KL of every variant that was asked for, by FAMILY.STAGE.VARIANT."""
    tree, found = give(family), {}
    for section, variant in variants():
        name = f"{section}.{variant}"
        if asked and not {section, name}.intersection(asked):
            continue
        start = monotonic()
        outcome, kl = attempt(tree, section, variant)
        found[f"{family}.{name}"] = outcome
        measured = f", kl {kl:.2g}" if kl is not None else ""
        print(f"  {name}: {outcome}{measured} ({monotonic() - start:.1f} s)", flush=True)
        if kl is not None:
            found[f"{family}.{name}.kl"] = float(f"{kl:.3g}")
    for made in Path("artifacts").iterdir():
        if made.name not in ("code", *SHARED):
            shutil.rmtree(made)
    return found


def give(family: str) -> dict[str, Any]:
    """Write the models that are there before any stage; the variants, which may name their hash."""
    tree, tokenizer = copy.deepcopy(TREE), models.load_tokenizer(Path("artifacts/tokenize/bpe/tokenizer"))
    for name, changes in GIVEN.items():
        models.save(_families.make(family, tokenizer, **changes), tokenizer, Path(f"artifacts/pretrain/{name}/model"))
    for entry in tree["pretrain"].values():
        entry["external"]["sha256"] = files.digest(Path(entry["external"]["source"]))
    return tree


def variants() -> Iterator[tuple[str, str]]:
    for section, entries in TREE.items():
        for variant in entries if section not in SHARED else ():
            if variant not in GIVEN and variant != "models":
                yield section, variant


def attempt(tree: dict[str, Any], section: str, variant: str) -> tuple[str, float | None]:
    """The outcome, and the KL where the stage measures one. A variant fares no better than its parents."""
    entry = tree["eval"]["models"]["base"] if section == "eval" else tree[section][variant]
    for parent in parents(entry):
        outcome = attempt(tree, *parent.split("/"))[0] if missing(parent) else "works"
        if outcome != "works":
            return f"{outcome.split(':')[0]}: its parent {parent}, {outcome}", None
    try:
        out = run(tree, section, variant)
        metrics = files.read_json(out / "metrics.json")
        problem = flaw(section, variant, out, metrics)
        return f"wrong: {problem}" if problem else "works", metrics.get("kl")
    except UserError as error:
        return f"refused: {error}", None
    except Exception as error:  # noqa: BLE001 (what the table is for)
        return f"crash: {type(error).__name__}: {' '.join(str(error).split())}"[:300], None


def parents(entry: Any) -> list[str]:
    """What a variant needs that families could fail at."""
    named = [entry] if isinstance(entry, str) else [entry.get(name) for name in ("model", "teacher", "traces")]
    return [parent for parent in named if parent and parent.split("/")[0] not in SHARED]


def missing(parent: str) -> bool:
    return parent.split("/")[1] not in GIVEN and not Path("artifacts", parent, "metrics.json").is_file()


def flaw(section: str, variant: str, out: Path, metrics: dict[str, Any]) -> str | None:
    """What the metrics say against the technique."""
    if section in ("align", "distill"):
        with (out / "curve.csv").open() as file:
            losses = [float(row["loss"]) for row in csv.DictReader(file)]
        if not min(losses[1:]) < losses[0]:
            return f"loss {losses[0]:.3f} never fell below, {losses[-1]:.3f} at the end"
    share = TREE[section][variant].get("sparsity") if section == "prune" else None
    if share and abs(metrics["sparsity"] - share) > 0.05:
        return f"sparsity {metrics['sparsity']:.3f}, not {share}"
    return None


def run(tree: dict[str, Any], section: str, variant: str) -> Path:
    """The command of dvc.yaml in this process; the folder it writes to."""
    with Path("params.yaml").open("w") as file:
        YAML().dump(tree, file)
    key, entry = ("base", tree["eval"]["models"]["base"]) if section == "eval" else (variant, tree[section][variant])
    names: dict[str, Any] = {**tree, "key": key, "item": entry}
    definition = DVC[variant if section == "eval" else section]["do"]

    def value(found: re.Match[str]) -> str:
        node: Any = names
        for part in found[1].split("."):
            node = node[part]
        return str(node)

    _, _, module, *arguments = shlex.split(re.sub(r"\$\{([\w.]+)\}", value, definition["cmd"]))
    stage = cyclopts.App(default_command=import_module(f"{module}.__main__").main, result_action="return_value")
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        stage(arguments, exit_on_error=False)
    return Path(arguments[arguments.index("--out") + 1])


def table(found: dict[str, Any]) -> str:
    """A family a line, a letter a variant: w works, r is refused, and what must not be: W is wrong, C crashed."""
    letters, orders = {"works": "w", "refused": "r", "wrong": "W", "crash": "C"}, {}
    for section, variant in variants():
        orders.setdefault(section, []).append(variant)
    lines = [f"{section:9} {' '.join(order)}" for section, order in orders.items()]
    lines.append(f"\n{'':17} " + " ".join(f"{section:9}" for section in orders))
    for family in _families.FAMILIES:
        cells = []
        for section, order in orders.items():
            outcomes = (str(found.get(f"{family}.{section}.{variant}", "")) for variant in order)
            cells.append("".join(letters.get(outcome.split(":")[0], " ") for outcome in outcomes))
        lines.append(f"{family:17} " + " ".join(f"{cell:9}" for cell in cells).rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    cyclopts.run(main)
