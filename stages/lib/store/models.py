"""Model artefacts: a folder in the Hugging Face layout (config.json, model.safetensors, tokenizer, chat template).

Every model artefact carries its tokenizer, so a folder is enough to run, compare or export it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.lib.frame import files
from stages.lib.frame.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def load(folder: Path, dtype: str = "float32") -> "PreTrainedModel":
    """The model of an artefact, on the accelerator if there is one, in eval mode."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    quiet()
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no model: config.json is missing")
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder} is damaged ({error}); run the stage that made it again") from error
    for weight in model.parameters():  # what a quantized file holds under another name keeps the file's type
        if weight.is_floating_point():
            weight.data = weight.data.to(model.dtype)
    return place(model).eval()


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder} has no tokenizer: tokenizer.json is missing")
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def same_tokenizer(one: Path, other: Path) -> bool:
    """Whether token numbers mean the same to two model artefacts."""
    return files.digest(one / "tokenizer.json") == files.digest(other / "tokenizer.json")


def require_same_tokenizer(student: Path, teacher: Path) -> None:
    """Refuse a teacher whose token numbers mean something else to the student, before training on them."""
    if not same_tokenizer(student, teacher):
        said, own = (files.digest(folder / "tokenizer.json")[:12] for folder in (teacher, student))
        raise UserError(f"the vocabularies differ: {teacher}, the teacher, has tokenizer {said}, {student} has {own}")


def save(model: "PreTrainedModel", tokenizer: Any, folder: Path) -> None:
    """Write model and tokenizer; the same weights give the same bytes."""
    with files.writing(folder) as temporary:
        write(model, tokenizer, temporary)


def write(model: "PreTrainedModel", tokenizer: Any, folder: Path) -> None:
    """Into a folder that somebody else is writing."""
    quiet()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def quiet() -> None:
    """No progress bars for models that are read in a blink."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def logits(model: "PreTrainedModel") -> "Callable[[Tensor], Tensor]":
    """The model as a function ids (B, T) -> logits (B, T, V)."""
    return lambda ids_BT: model(ids_BT.to(model.device), use_cache=False).logits


def place(model: "PreTrainedModel") -> "PreTrainedModel":
    """The model on the accelerator, if there is one."""
    import torch

    return model.to(torch.device(device()))  # pyright: ignore[reportArgumentType]


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
