"""Somebody else's weights instead of training: a hub id, a local folder, or a GGUF file (dequantized).

With `training` they are trained further on the rows. Rows and tokenizer come from the tokenize technique of this name.

A source that was quantized itself has few different weights in every block of a row, and whoever quantizes it again
finds them: what that costs would look too small. `shuffle` puts the channels into another order, everywhere at once, so
that a block holds weights from many: the same function, f(x; P W Q) = f(x; W), because a permutation meets its inverse
in the next matrix. Queries and keys keep their rows, which RoPE rotates in pairs.
"""

from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import NonNegativeInt
from torch import Tensor

from stages.lib.frame.errors import UserError
from stages.lib.store.hub import External, fetch
from stages.pretrain import Pretraining

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

OUTPUTS = (
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "input_layernorm",
    "post_attention_layernorm",
    "norm",
)


class Pretrained(Pretraining):
    method: Literal["pretrained"]
    external: External
    shuffle: NonNegativeInt | None = None  # a seed

    def build(self, tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
        from transformers import AutoModelForCausalLM, GgufConfig

        folder, arguments = fetch(self.external)
        if "gguf_file" in arguments:
            arguments["quantization_config"] = GgufConfig(gguf_file=arguments["gguf_file"], dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", local_files_only=True, **arguments)
        if (known := model.config.vocab_size) < len(tokenizer):
            vocabulary = f"the tokenizer of '{self.tokens}' has {len(tokenizer)}"
            raise UserError(f"{self.external.source} knows {known} tokens, {vocabulary}")
        return model if self.shuffle is None else shuffle(model, self.shuffle)


def shuffle(model: Any, seed: int) -> Any:
    """The same function with hidden and feed-forward channels, and the values within a head, in another order."""
    config, random = model.config, torch.Generator().manual_seed(seed)
    if config.model_type != "llama" or config.attention_bias or config.mlp_bias:
        raise UserError(f"pretrained can shuffle a llama without biases, not this {config.model_type}")
    hidden = torch.randperm(config.hidden_size, generator=random)
    blocks = [inner_order(config, random) for _ in range(config.num_hidden_layers)]
    weights = {}
    for name, weight in model.state_dict().items():
        block = blocks[int(name.split(".")[2])] if ".layers." in name else {}
        layer = name.split(".")[-2]
        weight = weight[block.get(f"{layer} rows", hidden)] if layer in OUTPUTS else weight
        weights[name] = weight[:, block.get(f"{layer} columns", hidden)] if weight.ndim == 2 else weight
    model.load_state_dict(weights)
    return model


def inner_order(config: Any, random: torch.Generator) -> dict[str, Tensor]:
    """New order of what stays within a block. K key-value heads of size H; o_proj reads the values of all heads."""
    heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    ffn = torch.randperm(config.intermediate_size, generator=random)
    within_KH = torch.rand(kv_heads, size, generator=random).argsort()
    starts = torch.arange(heads)[:, None] * size
    read = (starts + within_KH.repeat_interleave(heads // kv_heads, 0)).flatten()
    written = (starts[:kv_heads] + within_KH).flatten()
    rows = {"v_proj rows": written, "gate_proj rows": ffn, "up_proj rows": ffn}
    return {**rows, "o_proj columns": read, "down_proj columns": ffn}
