"""Align: a base model in, one that answers.

In   model artefact, problems and `examples` (record artefacts: instructions or preference pairs)
Out  model artefact (with `lora` its folder adapter/ holds the adapter alone), curve.csv; metrics: reply_loss_before,
     reply_loss_after (nats/token of held-out solutions), kl_reference (nats/token from the model before, on the same)

A technique is one file here. It defines `Params` and `align(model, tokenizer, problems, examples, params, curve,
checkpoints) -> timings`, which trains the model in place.
"""

from pydantic import Field, model_validator

from stages.lib.frame.params import Parent, Variant
from stages.lib.store.adapters import LoRA
from stages.lib.training.config import Training


class Alignment(Variant):
    """What every technique's variants share. Without `lora` all weights are trained."""

    model: Parent
    problems: Parent
    examples: Parent
    training: Training
    lora: LoRA | None = None
    context: int = Field(256, ge=16)
    held_out_rows: int = Field(32, ge=1)

    @model_validator(mode="after")
    def lora_fits(self) -> "Alignment":
        if self.lora and self.training.keep_zeros:
            raise ValueError("adapters are added to every weight, so keep_zeros can't hold: leave out lora")
        if self.lora and self.training.fake_quantize:
            raise ValueError("adapters are added to the rounded weights, so fake_quantize can't hold: leave out lora")
        return self
