"""Decoder from scratch, next-token loss: the 2025 recipe, built by transformers' Llama.

RMSNorm before each block (arXiv:1910.07467), SwiGLU (arXiv:2002.05202), rotary positions (arXiv:2104.09864), grouped
query attention (arXiv:2305.13245), no biases, tied embeddings, fused SDPA attention. Without `training` the weights
stay as drawn from the seed: where a student begins.
"""

from typing import Literal

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from stages.lib.nets import losses
from stages.pretrain import Pretraining


class Params(Pretraining):
    method: Literal["decoder"]
    hidden: PositiveInt = 256
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    kv_heads: PositiveInt = 2
    ffn: PositiveInt = 768
    context: PositiveInt = 512  # the longest sequence the model accepts
    seed: int = 0

    @model_validator(mode="after")
    def shapes_divide(self) -> "Params":
        if self.hidden % self.heads or self.heads % self.kv_heads:
            shapes = f"hidden {self.hidden}, heads {self.heads}, kv_heads {self.kv_heads}"
            raise ValueError(f"{shapes}: hidden must be a multiple of heads, and heads of kv_heads")
        return self


def build(tokenizer, p: Params) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(p.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=p.hidden,
            intermediate_size=p.ffn,
            num_hidden_layers=p.layers,
            num_attention_heads=p.heads,
            num_key_value_heads=p.kv_heads,
            max_position_embeddings=p.context,
            tie_word_embeddings=True,
            initializer_range=p.hidden**-0.5,  # 0.02, made for wide models, leaves narrow ones' attention flat for long
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def loss(model: nn.Module, ids_BT: Tensor) -> Tensor:
    return losses.next_token(model(input_ids=ids_BT, use_cache=False).logits, ids_BT)
