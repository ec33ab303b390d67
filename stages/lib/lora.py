"""Low-rank adapters: train a few per cent of the weights, then fold them into the model. arXiv:2106.09685, by peft."""

from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt

from stages.lib.params import Params

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class LoRA(Params):
    """Adapters on every linear layer but the head."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: float = Field(0.0, ge=0, lt=1)


def wrap(model: "PreTrainedModel", p: LoRA | None) -> "PreTrainedModel | PeftModel":
    """The model itself, or with fresh adapters as its only trainable weights."""
    if p is None:
        return model
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=p.rank, lora_alpha=p.alpha, lora_dropout=p.dropout, target_modules="all-linear")
    return get_peft_model(model, config)


def merge(model: "PreTrainedModel | PeftModel", p: LoRA | None) -> "PreTrainedModel":
    """The plain model, adapters added into its weights."""
    return model if p is None else model.merge_and_unload()  # type: ignore[return-value]
