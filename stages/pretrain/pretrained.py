"""Somebody else's weights instead of training: a hub id, a local folder, or a GGUF file.

What is quantized is unpacked, an adapter merged into its base, of a model that also sees the text part is taken. With
`training` it is trained further on the rows. Rows and tokenizer come from the tokenize technique of this name.

A source that was quantized itself has few different weights in every block of a row, and whoever quantizes it again
finds them: what that costs would look too small. `shuffle` puts the channels into another order, everywhere at once, so
that a block holds weights from many: the same function, f(x; P W Q) = f(x; W), because a permutation meets its inverse
in the next matrix. Queries and keys keep their rows, which RoPE rotates in pairs.
"""

from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import NonNegativeInt, model_validator
from torch import Tensor

from stages.lib.frame.errors import UserError
from stages.lib.nets import anatomy
from stages.lib.nets.anatomy import Axis, Heads
from stages.lib.store import adapters, loading
from stages.lib.store.hub import External, fetch
from stages.pretrain import Pretraining
from stages.pretrain.parts import imports

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class Pretrained(Pretraining):
    method: Literal["pretrained"]
    external: External
    base: External | None = None  # what an adapter was trained on, where its own config does not pin that
    licence: str | None = None  # of the weights, as exports will say it; none: what the source says of itself
    dtype: Literal["float32", "stored"] = "float32"  # stored: as the source has it, mostly half the memory
    shuffle: NonNegativeInt | None = None  # a seed

    @model_validator(mode="after")
    def trained_in_32_bits(self) -> "Pretrained":
        if self.training and self.dtype == loading.STORED:
            raise ValueError("dtype is stored, but in 16 bits small steps of a training are lost: leave out one")
        return self

    def build(self, tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
        folder, arguments = fetch(self.external)
        source = self.external.source
        if (folder / adapters.CONFIG).is_file():
            model = adapters.merged(folder, source, self.base, self.dtype)
        elif self.base:
            raise UserError(f"{source} is a whole model, no adapter of {self.base.source}: leave out `base`")
        else:
            model = loading.load(folder, source, self.dtype, **arguments)
        if (known := imports.rows(model)) < len(tokenizer):
            vocabulary = f"the tokenizer of '{self.tokens}' has {len(tokenizer):,}"
            raise UserError(f"{source} has rows for {known:,} tokens, {vocabulary}")
        imports.require_sound(model, source)
        model.config.origin = imports.origin(self.external, folder, arguments.get("gguf_file"), self.licence)
        print(f"{source}: {imports.summary(model, tokenizer)}")
        return model if self.shuffle is None else shuffle(model, self.shuffle)


def shuffle(model: Any, seed: int) -> Any:
    """The same function with hidden and feed-forward channels, and the values within a head, in another order."""
    config, random = model.config, torch.Generator().manual_seed(seed)
    if config.model_type != "llama" or config.attention_bias or config.mlp_bias:
        raise UserError(f"pretrained can shuffle a llama without biases, not this {config.model_type}")
    orders = {Axis("hidden"): torch.randperm(config.hidden_size, generator=random)}
    for block in range(len(anatomy.blocks(model))):
        orders |= inner_orders(anatomy.heads(config), config.intermediate_size, block, random)
    axes = anatomy.axes(model)
    model.load_state_dict({name: anatomy.take(w, axes[name], orders) for name, w in model.state_dict().items()})
    return model


def inner_orders(heads: Heads, ffn: int, block: int, random: torch.Generator) -> dict[Axis, Tensor]:
    """New orders of what stays within a block. K key-value heads of S values; attention mixes them for every query."""
    channels = torch.randperm(ffn, generator=random)
    within_KS = torch.rand(heads.keys_values, heads.size, generator=random).argsort()
    starts = torch.arange(heads.queries)[:, None] * heads.size
    mixed = (starts + within_KS.repeat_interleave(heads.queries // heads.keys_values, 0)).flatten()
    values = (starts[: heads.keys_values] + within_KS).flatten()
    return {Axis("ffn", block): channels, Axis("mixed", block): mixed, Axis("values", block): values}
