"""Pretrain: token rows in, a base model out.

In   tokens, tokenizer
Out  model artefact, curve.csv; metrics: loss_before, loss_after (nats/token, held out), parameters

Without `training` the model is taken as the technique builds it.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from pydantic import Field

from stages.lib.frame.params import Tokens, Variant
from stages.lib.nets import losses
from stages.lib.training.config import Training

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class Pretraining(Variant, ABC):
    """The contract of a technique. `tokens` names the tokenize variant: its rows and its tokenizer."""

    tokens: Tokens
    training: Training | None = None
    held_out_rows: int = Field(64, ge=1)

    @abstractmethod
    def build(self, tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
        """The model as training finds it, on the CPU, with a row of its embedding for every token."""

    def loss(self, model: "PreTrainedModel", ids_BT: "Tensor") -> "Tensor":
        """Mean over a batch of rows; next-token cross entropy, where a family of models has no objective of its own."""
        return losses.next_token(model(input_ids=ids_BT, use_cache=False).logits, ids_BT)
