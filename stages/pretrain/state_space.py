"""State-space decoder, next-token loss: a state of fixed size instead of a cache that grows. Dao & Gu 2024 (Mamba-2),
arXiv:2405.21060, section 3.1.

    h_t = exp(dt_t A) h_t-1 + dt_t B_t x_t^T      y_t = C_t^T h_t + D x_t      dt_t = softplus(dt + bias)

A head has one negative number A and a state of `state` x `head_dim`; B and C are shared by the heads of a group. Built
by transformers' Mamba2, with tied embeddings. Without `training` the weights stay as drawn from the seed: where a
student of another architecture than its teacher begins. Cost: linear in the context; without the CUDA kernels a scan
holds context x chunk x heads x state numbers, so the chunk is small.
"""

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import PositiveInt, model_validator

from stages.pretrain import Pretraining
from stages.pretrain.parts.vocabulary import vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class StateSpace(Pretraining):
    method: Literal["state_space"]
    hidden: PositiveInt = 256
    layers: PositiveInt = 4
    expand: PositiveInt = 2  # inner width, in hiddens
    head_dim: PositiveInt = 64
    state: PositiveInt = 32
    groups: PositiveInt = 1
    convolution: PositiveInt = 4  # tokens
    chunk: PositiveInt = 32  # tokens
    vocab_size: PositiveInt | None = None  # rows of embedding, for a teacher that has more than tokens; None: as many
    seed: int = 0

    @model_validator(mode="after")
    def shapes_divide(self) -> "StateSpace":
        inner = self.hidden * self.expand
        if inner % self.head_dim or inner // self.head_dim % self.groups:
            shapes = f"hidden {self.hidden}, expand {self.expand}, head_dim {self.head_dim}, groups {self.groups}"
            raise ValueError(f"{shapes}: hidden x expand must be a multiple of head_dim, the heads of that of groups")
        return self

    def build(self, tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
        from transformers import Mamba2Config, Mamba2ForCausalLM

        torch.manual_seed(self.seed)
        return Mamba2ForCausalLM(
            Mamba2Config(
                **vocabulary(tokenizer, self.vocab_size),
                hidden_size=self.hidden,
                num_hidden_layers=self.layers,
                expand=self.expand,
                head_dim=self.head_dim,
                num_heads=self.hidden * self.expand // self.head_dim,
                state_size=self.state,
                n_groups=self.groups,
                conv_kernel=self.convolution,
                chunk_size=self.chunk,
                tie_word_embeddings=True,
                initializer_range=self.hidden**-0.5,
            )
        )
