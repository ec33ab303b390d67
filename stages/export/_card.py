"""The README.md of an exported model: what it is, how faithful, how to run it."""

from typing import Any

CARD = """\
# {variant}

A language model exported by Orchard from `{source}` as {format}.

| | |
|---|---|
| parameters | {parameters:,} |
| bits per weight, scales counted | {bits_per_weight:.2f} |
| architecture | {architecture}: {layers} layers, width {width}, {heads} heads, {kv_heads} key-value heads |
| vocabulary, context | {vocabulary:,} tokens, {context:,} tokens |
| KL divergence from its source, held out | {kl:.4f} nats/token |
| same most likely token as its source | {same_top:.2%} |
| held-out loss: source, this file | {loss_before:.4f}, {loss_after:.4f} nats/token |

## Run

{run}
Chat template (Jinja):

    {template}
"""
LLAMA_CPP = """\
    llama-cli -m model.gguf                            # llama.cpp
    ollama create orchard -f Modelfile && ollama run orchard
    python -m stages.lib.chat --model model.gguf       # from an Orchard checkout
"""
TRANSFORMERS = """\
    transformers.pipeline("text-generation", "this folder")
"""


def text(variant: str, p: Any, config: Any, tokenizer: Any, metrics: dict[str, Any]) -> str:
    return CARD.format(
        variant=variant,
        source=p.model,
        format=f"GGUF {p.type}" if p.method == "gguf" else f"{p.method}, 16-bit floats",
        architecture=config.model_type,
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        run=LLAMA_CPP if p.method == "gguf" else TRANSFORMERS,
        template=tokenizer.chat_template or "none",
        **metrics,
    )
