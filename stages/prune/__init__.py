"""Prune: a dense model in, a sparse or a smaller one out.

In   model artefact, token artefact (calibration and held-out rows)
Out  model artefact, stored dense and read back; metrics: sparsity (share of zeros in all that multiplies inside the
     blocks: every expert, and the routers, which no technique changes), sparsity_model (in all parameters),
     parameters, nonzero_parameters, and on held-out rows kl (parent || pruned), same_top (share of positions),
     loss_before, loss_after (nats/token); where a technique tells ranks, rank and redundancy (the share of the full
     rank that is missing), matrix by matrix; where it cuts the vocabulary, vocab_size_before, vocab_size and dropped
     (share of held-out tokens that are gone), and then both models read the rows in the tokens that are left, and the
     parent's distributions are restricted to these

Recovery is another variant: align or distill, with `keep_zeros` in its training.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from stages.lib.frame import params
from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Calibration, Model, Share, Tokens, Variant
from stages.lib.nets import anatomy, calibrate, masks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.prune.parts.given import Given


class Pruning(Variant, ABC):
    """The contract of a technique."""

    model: Model
    tokens: Tokens
    calibration: Calibration | None = None
    held_out_rows: PositiveInt = 64

    @abstractmethod
    def prune(self, model: "PreTrainedModel", given: "Given") -> "PreTrainedModel":
        """The pruned model, perhaps the same object changed in place; embeddings, head and routers stay dense.

        `given` has the rows, the tokenizer, which a technique may replace by a part of it, and what outlives a kill:
        scores of rows, trainings. A network that the technique can't prune is refused before any work:
        `raise self.refusal(...)`.
        """

    def ranks(self, model: "PreTrainedModel") -> dict[str, int]:
        """The numerical rank of every matrix, where that is what the technique is about."""
        return {}

    def matrices(self, model: "PreTrainedModel") -> dict[str, anatomy.Matrix]:
        """Whose weights may go; refuses a network that has weights of a kind nobody knows, or none at all."""
        if strange := anatomy.unknown(model):
            raise self.refusal(model, f"prune Linears, Conv1Ds and fused experts, not its {params.names(strange)}")
        if not (found := anatomy.matrices(model)):
            raise self.refusal(model, "prune Linears, Conv1Ds and fused experts, and it has none")
        return found

    def refusal(self, model: "PreTrainedModel", can: str) -> UserError:
        return UserError(f"{self.model} is a {model.config.model_type}; {self.method} can {can}")


class Sparse(Pruning):
    """Single weights become zero, their place stays; how many is given as a share or as a pattern."""

    sparsity: Share | None = None
    pattern: Literal["2of4", "4of8"] | None = Field(None, validate_default=True)  # 2 of every 4 neighbours stay

    @field_validator("pattern")
    @classmethod
    def one_of_both(cls, pattern: str | None, info: ValidationInfo) -> str | None:
        if "sparsity" in info.data and (pattern is None) == (info.data["sparsity"] is None):
            raise PydanticCustomError("one_of", "give exactly one of sparsity and pattern")
        return pattern

    def matrices(self, model: "PreTrainedModel") -> dict[str, anatomy.Matrix]:
        found = super().matrices(model)
        if self.pattern:
            calibrate.check_widths(found, masks.sizes(self.pattern)[1], f"pattern {self.pattern}")
        return found
