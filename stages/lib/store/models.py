"""Model artefacts: a folder in the Hugging Face layout (config.json, model.safetensors, tokenizer, chat template).

Weights of more than `SHARD` bytes lie in several files, which model.safetensors.index.json lists.

Every model artefact carries its tokenizer, so a folder is enough to run, compare or export it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.store import folders, loading

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SHARD = "5GB"  # what most tools of others choose


def load(folder: Path, dtype: str = "float32") -> "PreTrainedModel":
    """The model of an artefact, on the accelerator if there is one, in eval mode; packed weights stay packed.

    `dtype` "stored" is that of its weights: half the memory, where they were taken in so and are not trained.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no model: config.json is missing")
    if dtype == loading.STORED and "quantization_config" in files.read_json(folder / "config.json"):
        dtype = "float32"  # what is not packed was rounded to 16 bits, but is computed in 32
    model = loading.read(folder, folder, dtype)
    for weight in model.parameters() if dtype != loading.STORED else ():
        if weight.is_floating_point():  # what a quantized file holds under another name keeps the file's type
            weight.data = weight.data.to(model.dtype)
    return place(model).eval()


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """As tokenizer.json has it: the class of a model would build its own rules instead."""
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder} has no tokenizer: tokenizer.json is missing")
    loading.quiet()
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


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


def write(model: "PreTrainedModel", tokenizer: Any, folder: Path, shard: str = SHARD) -> None:
    """Into a folder that somebody else is writing."""
    loading.quiet()
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    folders.finish(folder)


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
