"""The model card of an export: what it is, how good, how faithful, how to run it, from which data and licences.

It takes what the export says of itself, what eval measured of it and what params.yaml says of all it was made from, so
that the same inputs give the same bytes. Speed and energy are numbers of one machine; they join the card when the model
is released (flows/release.py).
"""

import textwrap
from pathlib import Path
from typing import Any

from stages.lib.frame import files, gates, params
from stages.lib.frame.params import Tree
from stages.report.parts import evaluated, numbers

CARD = """\
# {variant}

A language model exported by Orchard from `{source}` as {format}.

| | |
|---|---|
| parameters | {parameters:,} |
| bytes of the weights file | {bytes:,} |
| bits per weight, scales counted | {bits_per_weight:.2f} |
| architecture | {architecture} |
| vocabulary, context | {vocabulary:,} tokens, {length} |
| accuracy, {problems} | {accuracy} |
| bits per byte, held-out documents | {bits_per_byte} |
| KL divergence from its source, held out | {kl:.4f} nats/token |
| same most likely token as its source | {same_top:.2%} |
| held-out loss: source, this file | {loss_before:.4f}, {loss_after:.4f} nats/token |

## Run

{run}
Chat template (Jinja):

{template}

## Data and licences

{data}

## Lineage, nearest first

{lineage}
"""


def write_all(tree: Tree, artifacts: Path, folder: Path) -> None:
    """FOLDER/EXPORT.md for every export that was made."""
    with files.writing(folder) as temporary:
        for variant in params.variants(tree, "export"):
            if (artifacts / "export" / variant / "metrics.json").is_file():
                (temporary / f"{variant}.md").write_text(text(tree, artifacts, variant), encoding="utf-8")


def text(tree: Tree, artifacts: Path, variant: str) -> str:
    made = files.read_json(artifacts / "export" / variant / "metrics.json")
    name = gates.measured(tree).get(f"export/{variant}")
    quality = evaluated.read(tree, artifacts, name) if name else {}
    entries = ancestors(tree, f"export/{variant}")
    return CARD.format_map({
        **made,
        "variant": variant,
        "source": params.variants(tree, "export")[variant]["model"],
        "length": f"{made['context']:,} tokens" if made["context"] else "of any length",
        "problems": f"{quality.get('num_problems', '')} held-out problems".strip(),
        "accuracy": accuracy(quality),
        "bits_per_byte": numbers.number(quality.get("bits_per_byte")),
        "template": textwrap.indent(chat_template(artifacts / "export" / variant / "model"), "    "),
        "data": "\n".join(filter(None, map(origin, entries, entries.values()))) or "- not known",
        "lineage": "\n".join(step(tree, name, entry) for name, entry in entries.items()),
    })  # fmt: skip


def accuracy(quality: dict[str, Any]) -> str:
    """With its interval."""
    if "accuracy" not in quality:
        return numbers.MISSING
    low, high = quality["accuracy_low"], quality["accuracy_high"]
    return f"{quality['accuracy']:.1%}, 95 % interval {low:.1%} to {high:.1%}"


def chat_template(folder: Path) -> str:
    """Of the tokenizer in an exported folder: in a file of its own or among the tokenizer's settings."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    return evaluated.optional(folder / "tokenizer_config.json").get("chat_template") or "none"


def ancestors(tree: Tree, model: str) -> dict[str, dict[str, Any]]:
    """What a variant was made from, "stage/variant" -> entry of params.yaml; parents before theirs."""
    found: dict[str, dict[str, Any]] = {}
    queue = list(parents(tree, model).values())
    while queue:
        name = queue.pop(0)
        if name not in found:
            stage, variant = name.split("/", 1)
            found[name] = params.variants(tree, stage)[variant]
            queue += parents(tree, name).values()
    return found


def parents(tree: Tree, model: str) -> dict[str, str]:
    """The parameters of "stage/variant" that name another variant. Data has none: its source is a path."""
    stage, variant = model.split("/", 1)
    entry = params.variants(tree, stage)[variant]
    made = {f"{each}/{name}" for each in params.STAGES for name in params.variants(tree, each)}
    named = {key: value for key, value in entry.items() if isinstance(value, str) and value in made}
    return {} if stage == "data" else named


def origin(name: str, entry: dict[str, Any]) -> str | None:
    """A line for what came from outside: data with its licence, or somebody else's model or tokenizer."""
    if external := entry.get("external"):
        pinned, licence = external.get("revision") or external.get("sha256"), entry.get("licence")
        return f"- {name}: `{external['source']}` ({pinned}), {licence or 'under the licence its owner gave it'}"
    return f"- {name}: `{entry['source']}`, {entry['licence']}" if "licence" in entry else None


def step(tree: Tree, name: str, entry: dict[str, Any]) -> str:
    inputs = ", ".join(f"{key} {parent}" for key, parent in parents(tree, name).items())
    return f"- {name}: {entry['method']}{' of ' if inputs else ''}{inputs}"
