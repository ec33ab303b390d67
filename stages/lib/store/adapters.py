"""Low-rank adapters: train a few per cent of the weights, then fold them into the model. arXiv:2106.09685, by peft.

An adapter is a folder in peft's own layout. Its adapter_config.json names the base it was trained on: the folder, as
dvc.yaml gave it, and in `revision` the folder's sha256.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveInt

from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Params
from stages.lib.store import models

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

FOLDER = "adapter"  # inside the folder of the model that was trained with it
CONFIG = "adapter_config.json"


class LoRA(Params):
    """Adapters on every linear layer but the head."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: float = Field(0.0, ge=0, lt=1)


def wrap(model: "PreTrainedModel", p: LoRA | None, sha256: str | None = None) -> "PreTrainedModel | PeftModel":
    """The model itself, or with fresh adapters as its only trainable weights; `sha256` of the folder it came from."""
    if p is None:
        return model
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=p.rank, lora_alpha=p.alpha, lora_dropout=p.dropout, target_modules="all-linear")
    return get_peft_model(model, config, revision=sha256)


def merge(model: "PreTrainedModel | PeftModel", p: LoRA | None) -> "PreTrainedModel":
    """The plain model, adapters added into its weights."""
    return model if p is None else model.merge_and_unload()  # type: ignore[return-value]


def save(model: Any, folder: Path) -> None:
    """The adapter alone; the same weights give the same bytes."""
    model.save_pretrained(str(folder), selected_adapters=["default"], save_embedding_layers=False)
    (folder / "README.md").unlink()  # an empty form
    about = files.read_json(folder / CONFIG)
    about["target_modules"].sort()  # a set, in another order in every process
    files.write_json(folder / CONFIG, about)


def load(folder: Path) -> "PeftModel":
    """The base that the adapter names, with the adapter beside its weights."""
    from peft import PeftConfig, PeftModel
    from safetensors import SafetensorError

    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is no adapter: {CONFIG} is missing; align writes one where `lora` is set")
    config = PeftConfig.from_pretrained(str(folder))
    base = Path(str(config.base_model_name_or_path))
    if files.digest(base) != config.revision:
        raise UserError(f"{base} is not what {folder} was trained on: its sha256 is not {config.revision}")
    try:
        return PeftModel.from_pretrained(models.load(base), str(folder)).eval()
    except SafetensorError as error:
        raise UserError(f"{folder} is damaged ({error}): run the stage that wrote it again") from error
