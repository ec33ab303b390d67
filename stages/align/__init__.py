"""Align: a base model in, one that answers.

In   model artefact, problems and `examples` (record artefacts: instructions, preference pairs, replies that were liked
     or not, or traces/rollouts, which are such replies)
Out  model artefact (with `lora` its folder adapter/ holds the adapter alone), curve.csv; metrics: reply_loss_before,
     reply_loss_after (nats/token of held-out solutions), kl_reference (nats/token from the model before, on the same);
     where the examples are pairs, of the held-out ones margin (how much further apart the two replies are than before,
     nats), preference_accuracy, chosen_logprob and rejected_logprob (nats), each _before and _after; where they are
     replies that were liked or not, liked_logprob and disliked_logprob (nats)

The curve shows, beside the loss, what a technique measures on its batches.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field, model_validator

from stages.lib.frame.params import Examples, Records, Start, Variant
from stages.lib.store.adapters import LoRA
from stages.lib.training.config import Training

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from stages.lib.store.records import Record
    from stages.lib.text.packing import Batch

SCAFFOLD = "align_scaffold"  # what `scaffold` gives, while it is trained with the model
Reference = Callable[[], AbstractContextManager["PreTrainedModel"]]  # within, the model as it came


class Given(NamedTuple):
    """What a technique learns from, and the models that it may ask."""

    tokenizer: "PreTrainedTokenizerFast"
    problems: "list[Record]"
    examples: "list[Record]"
    policy: "PreTrainedModel"
    reward_model: "PreTrainedModel | None" = None  # of variants under `rlhf`
    journals: "Path | None" = None  # where the answers of endpoints are kept, which may have been paid for


class Alignment(Variant, ABC):
    """The contract of a technique. Without `lora` all weights are trained."""

    model: Start
    problems: Records
    examples: Examples
    training: Training
    lora: LoRA | None = None
    context: int = Field(256, ge=16)
    held_out_rows: int = Field(32, ge=1)

    @abstractmethod
    def batches(self, given: Given) -> "Callable[[int], Batch]":
        """Part number i of the training, of `training.part_size` rows; a function of i alone, and where the policy
        writes them of its weights at that time."""

    @abstractmethod
    def loss(
        self, policy: "PreTrainedModel", reference: Reference, batch: "Batch"
    ) -> "tuple[Tensor, dict[str, Tensor]]":
        """The mean loss of a part, and measures of it for the curve."""

    def terms(self, batch: "Batch") -> "Tensor | int":
        """How many terms that mean is over, which a part weighs beside the others of its batch; as told here, all weigh
        the same. What is no mean, as of kto the drift, of ppo the spread of the advantages, is of a part in any case.
        """
        return 1

    def scaffold(self, policy: "PreTrainedModel") -> "Module | None":
        """What is trained beside the model and then left out of it."""

    def cycle(self) -> int:
        """Steps that belong together."""
        return 1

    def watch(self, curve: list[dict[str, float]]) -> str | None:
        """Why it makes no sense to go on, if so."""

    def compare(
        self,
        before: "PreTrainedModel",
        after: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerFast",
        preferences: "list[Record]",
    ) -> dict[str, float]:
        """What else there is to say of both models, on held-out examples."""
        return {}

    @model_validator(mode="after")
    def lora_fits(self) -> "Alignment":
        if self.lora and self.training.keep_zeros:
            raise ValueError("adapters are added to every weight, so keep_zeros can't hold: leave out lora")
        if self.lora and self.training.fake_quantize:
            raise ValueError("adapters are added to the rounded weights, so fake_quantize can't hold: leave out lora")
        return self
