"""How a model is trained; what it learns from is the technique's."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from stages.lib.frame.params import Params
from stages.lib.nets.rounding import FakeQuantize

Precision = Literal["auto", "float32", "bfloat16"]  # auto: bfloat16 where it is the faster one


class Training(Params):
    steps: PositiveInt
    batch_size: PositiveInt = 16  # rows a step, over all accumulated parts
    accumulation: PositiveInt = 1  # parts a batch is worked off in, to save memory
    lr: PositiveFloat = 3e-3
    optimizer: Literal["muon", "adamw"] = "muon"
    schedule: Literal["cosine", "wsd"] = "cosine"
    warmup: float = Field(0.05, ge=0, lt=1)  # share of the steps
    decay: float = Field(0.2, gt=0, le=1)  # share of the steps at the end in which wsd goes down
    lr_floor: float = Field(0.05, ge=0, le=1)  # share of lr that is left at the end
    weight_decay: float = Field(0.1, ge=0)
    clip: PositiveFloat = 1.0
    precision: Precision = "auto"
    keep_zeros: bool = False  # a pruned model's zeros stay zeros
    fake_quantize: FakeQuantize | None = None  # weights are rounded in every pass, and for good at the end
    checkpoint_seconds: PositiveInt = 60  # between two; changes no result
    seed: NonNegativeInt = 0  # of the examples' order, adapters and dropout

    @model_validator(mode="after")
    def whole_parts(self) -> "Training":
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} can't be worked off in {self.accumulation} equal parts")
        if self.schedule != "wsd":
            self.refuse_idle("decay", "with `schedule: wsd`")
        return self

    @property
    def part_size(self) -> int:
        """Rows of one accumulated part."""
        return self.batch_size // self.accumulation
