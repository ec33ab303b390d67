"""How a model is trained; what it learns from is the technique's."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from stages.lib.frame.params import Params
from stages.lib.nets.rounding import FakeQuantize

Precision = Literal["auto", "float32", "bfloat16"]  # auto: bfloat16 where it is the faster one


class Training(Params):
    """`devices` is part of what an artefact is known by, like any parameter: sums in another order differ in their last
    bits, and so nobody has to compare models within tolerances. A checkpoint resumes on any number.
    """

    steps: PositiveInt
    batch_size: PositiveInt = 16  # rows a step, over all accumulated parts
    accumulation: PositiveInt = 1  # parts a batch is worked off in one after another, to save memory
    devices: PositiveInt = 1  # processes that work it off side by side, each on an accelerator, if there are any
    parallel: Literal["ddp", "fsdp"] = "ddp"  # every device holds the whole model, or a share of every block
    checkpoint_activations: bool = False  # computed again for the backward pass: a third more time, much less memory
    compile: bool = False  # the blocks, to kernels: faster after a minute or two
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
        if self.batch_size % self.parts:
            wanted = f"{self.parts} equal parts (accumulation {self.accumulation}, devices {self.devices})"
            raise ValueError(f"batch_size {self.batch_size} can't be worked off in {wanted}")
        if self.devices == 1:
            self.refuse_idle("parallel", "with `devices` above 1")
        elif self.parallel == "fsdp" and self.fake_quantize:
            raise ValueError("fake_quantize rounds whole matrices, and fsdp holds shares of them: take `parallel: ddp`")
        if self.schedule != "wsd":
            self.refuse_idle("decay", "with `schedule: wsd`")
        return self

    def require_whole_model(self) -> None:
        """For validators of techniques that learn from what the model writes, each process from replies of its own."""
        if self.parallel == "fsdp":
            raise ValueError("training: no process can write replies with a share of the model: take `parallel: ddp`")

    @property
    def parts(self) -> int:
        """Of a batch, one after another and side by side. Part i of a training belongs to step i // parts."""
        return self.accumulation * self.devices

    @property
    def part_size(self) -> int:
        """Rows of one part."""
        return self.batch_size // self.parts
