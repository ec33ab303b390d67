"""The README.md of an exported model: what it is, from which data, how faithful, how to run it.

It says what this stage knows and what params.yaml says of every ancestor, so that the same inputs give the same bytes;
accuracy, speed and energy are measured later, and joined to it when the model is released (flows/release.py).
"""

from types import ModuleType
from typing import Any

from pydantic import BaseModel

from stages.lib.frame import params

CARD = """\
# {variant}

A language model exported by Orchard from `{source}` as {format}.

| | |
|---|---|
| parameters | {parameters:,} |
| bits per weight, scales counted | {bits_per_weight:.2f} |
| architecture | {architecture} |
| vocabulary, context | {vocabulary:,} tokens, {context} |
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


def text(technique: ModuleType, variant: str, p: Any, config: Any, tokenizer: Any, metrics: dict[str, Any]) -> str:
    made_from = ancestors(params.read(), p)
    context = getattr(config, "max_position_embeddings", None)
    return CARD.format(
        variant=variant,
        source=p.model,
        format=f"{technique.NAME} {getattr(p, 'type', '')}".strip(),
        architecture=architecture(config),
        vocabulary=config.vocab_size,
        context=f"{context:,} tokens" if context else "of any length",
        run=technique.RUN,
        template=tokenizer.chat_template or "none",
        data="\n".join(source(name, each) for name, each in made_from.items() if origin(each)) or "- not known",
        lineage="\n".join(step(name, each) for name, each in made_from.items()),
        **metrics,
    )


def architecture(config: Any) -> str:
    shape = f"{config.model_type}: {config.num_hidden_layers} layers, width {config.hidden_size}"
    if not (kv_heads := getattr(config, "num_key_value_heads", None)):  # a state space has none
        return shape
    return f"{shape}, {config.num_attention_heads} heads, {kv_heads} key-value heads"


def ancestors(tree: dict[str, Any], p: BaseModel) -> dict[str, BaseModel]:
    """The variants that a variant with these params comes from, "stage/variant" -> params; parents before theirs."""
    found: dict[str, BaseModel] = {}
    queue = list(params.parents(p).values())
    while queue:
        name = queue.pop(0)
        if name not in found:
            stage, variant = name.split("/", 1)
            _, found[name] = params.technique(stage, variant, tree[stage][variant])
            queue += params.parents(found[name]).values()
    return found


def origin(p: Any) -> Any:
    """What came from outside: the source of data, or somebody else's model or tokenizer."""
    return getattr(p, "licence", None) and p or getattr(p, "external", None)


def source(name: str, p: Any) -> str:
    if hasattr(p, "licence"):
        return f"- {name}: `{p.source}`, {p.licence}"
    pinned = p.external.revision or p.external.sha256
    return f"- {name}: `{p.external.source}` ({pinned}), under the licence its owner gave it"


def step(name: str, p: Any) -> str:
    inputs = ", ".join(f"{key} {parent}" for key, parent in params.parents(p).items())
    return f"- {name}: {p.method}{' of ' if inputs else ''}{inputs}"
