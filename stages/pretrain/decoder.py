"""Decoder from scratch, next-token loss: the 2025 recipe, built by transformers' Llama.

RMSNorm before each block (arXiv:1910.07467), SwiGLU (arXiv:2002.05202), rotary positions (arXiv:2104.09864), grouped
query attention (arXiv:2305.13245), no biases, tied embeddings, fused SDPA attention. Without `training` the weights
stay as drawn from the seed: where a student begins.
"""

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import PositiveInt, model_validator

from stages.pretrain import Pretraining
from stages.pretrain.parts.vocabulary import vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class Decoder(Pretraining):
    method: Literal["decoder"]
    hidden: PositiveInt = 256
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    kv_heads: PositiveInt = 2
    ffn: PositiveInt = 768
    context: PositiveInt = 512  # the longest sequence the model accepts
    vocab_size: PositiveInt | None = None  # rows of embedding, for a teacher that has more than tokens; None: as many
    seed: int = 0

    @model_validator(mode="after")
    def shapes_divide(self) -> "Decoder":
        if self.hidden % self.heads or self.heads % self.kv_heads:
            shapes = f"hidden {self.hidden}, heads {self.heads}, kv_heads {self.kv_heads}"
            raise ValueError(f"{shapes}: hidden must be a multiple of heads, and heads of kv_heads")
        return self

    def build(self, tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(self.seed)
        return LlamaForCausalLM(
            LlamaConfig(
                **vocabulary(tokenizer, self.vocab_size),
                hidden_size=self.hidden,
                intermediate_size=self.ffn,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                num_key_value_heads=self.kv_heads,
                max_position_embeddings=self.context,
                tie_word_embeddings=True,
                # 0.02, made for wide models, leaves narrow ones' attention flat for long
                initializer_range=self.hidden**-0.5,
            )
        )
