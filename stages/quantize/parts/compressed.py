"""What the techniques leave to llmcompressor: a calibration run in memory, and packing into compressed-tensors."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stages.lib.frame.errors import UserError
from stages.lib.nets import anatomy, calibrate
from stages.quantize import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel

os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")  # read when llmcompressor is imported

BYTES = {"num_bits": 8, "type": "int", "strategy": "channel"}
BYTES_A_TOKEN = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "observer": None}


def oneshot(model: Any, modifiers: list[Any], rows_NT: Tensor | None = None, batch: int = 8) -> Any:
    """llmcompressor's `oneshot` for a model and rows in memory; the original wants paths and writes a recipe file.

    Without rows where the modifiers look at weights alone.
    """
    from compressed_tensors.offload import remove_dispatch
    from llmcompressor.args.dataset_arguments import DatasetArguments
    from llmcompressor.core import create_session
    from llmcompressor.modeling.offset_norm import norm_calibration_context
    from llmcompressor.pipelines import CalibrationPipeline
    from torch.utils.data import DataLoader

    rows = [] if rows_NT is None else [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows_NT]
    batches = DataLoader(rows, batch_size=batch)  # pyright: ignore[reportArgumentType]
    with create_session() as session, norm_calibration_context(model), unpinned():
        session.initialize(model=model, start=-1, recipe=modifiers, calib_data=batches)
        CalibrationPipeline.from_modifiers(session.lifecycle.recipe.modifiers)(model, batches, DatasetArguments())
        session.finalize()
    return remove_dispatch(model, onload_tensors=True)


def scheme(model: nn.Module, weights: dict[str, Any], activations: dict[str, Any] | None = None) -> dict[str, Any]:
    """Arguments of a quantization modifier for every Linear that `calibrate.linears` names: all but the head."""
    changed = calibrate.linears(model)
    ignore = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name not in changed]
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {"config_groups": {"group_0": group}, "ignore": ignore}


def require_plain(model: "PreTrainedModel", technique: Quantization) -> None:
    """The scales of AWQ and SmoothQuant go into the layer before, which llmcompressor finds by its name only."""
    if not anatomy.is_plain(model):
        known = f"{technique.method} knows the layers of {', '.join(anatomy.PLAIN)}"
        raise UserError(f"{known}, not of {model.config.model_type} ({technique.model}): take gptq or rtn")


def require_linears(model: "PreTrainedModel", variant: str, parent: str) -> None:
    """Refuse what compressed-tensors and bitsandbytes would leave as it is: they pack Linears and nothing else."""
    other = [name for name, matrix in anatomy.matrices(model).items() if not isinstance(matrix.module, nn.Linear)]
    if other := [*other, *anatomy.unknown(model)]:
        found = f"{parent} is a {model.config.model_type}, whose {other[0]} is no Linear"
        raise UserError(f"quantize.{variant}: {found}, so no format here can pack it: prune it, or export it as it is")


@torch.no_grad()
def round_rest(model: nn.Module, dtype: torch.dtype) -> None:
    """Round to the type they will be stored in: scales, embeddings, norms; not the weights that become integers."""
    integers = {id(layer.weight) for layer in model.modules() if hasattr(layer, "quantization_scheme")}
    for parameter in model.parameters():
        if parameter.is_floating_point() and id(parameter) not in integers:
            parameter.copy_(parameter.to(dtype))


def pack(model: Any, dtype: torch.dtype) -> Any:
    """Turn weights into packed integers, in place, and say so in the config; `save_pretrained` then does the rest."""
    from compressed_tensors import ModelCompressor, __version__

    if not hasattr(model.config, "quantization_config"):  # else packed already
        compressor = ModelCompressor.from_pretrained_model(model)
        compressor.compress_model(model)
        assert compressor.quantization_config is not None
        about = compressor.quantization_config.model_dump(exclude={"quant_method"})
        model.config.quantization_config = {"quant_method": "compressed-tensors", "version": __version__, **about}
    return model.to(dtype)


@contextmanager
def quiet() -> Iterator[None]:
    """The libraries draw a bar a layer, with no switch once tqdm is imported, and warn of kernels not used here."""
    from tqdm import tqdm

    loud = tqdm.__init__
    tqdm.__init__ = lambda self, *args, **options: loud(self, *args, **options | {"disable": True})
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        tqdm.__init__ = loud


@contextmanager
def unpinned() -> Iterator[None]:
    """AWQ pins its cache in memory for an accelerator, also where there is none; pinning then raises."""
    from llmcompressor.pipelines.cache import IntermediatesCache

    pin = IntermediatesCache.pin_memory
    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = lambda self, batch_index, input_names=None: None
    try:
        yield
    finally:
        IntermediatesCache.pin_memory = pin
