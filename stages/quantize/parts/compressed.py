"""What the techniques leave to llmcompressor: a calibration run in memory, and packing into compressed-tensors."""

import copy
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stages.lib.frame import params
from stages.lib.frame.errors import UserError
from stages.lib.nets import anatomy, calibrate
from stages.quantize import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel

os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")  # read when llmcompressor is imported

BYTES = {"num_bits": 8, "type": "int", "strategy": "channel"}
BYTES_A_TOKEN = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "observer": None}

PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "up_proj": ("up_proj",), "down_proj": ("down_proj",)}  # of an expert
EXPERT = r".*\.experts\.\d+\..*"  # names of their Linears
EXPERTS_WORK = "take rtn, gptq or int8 without activations"
OTHERWISE = "prune it, or export it as GGUF"


def oneshot(model: Any, modifiers: list[Any], rows_NT: Tensor | None = None, batch: int = 8) -> Any:
    """llmcompressor's `oneshot` for a model and rows in memory; the original wants paths and writes a recipe file.

    Without rows where the modifiers look at weights alone. Every expert sees all tokens: few are routed to some.
    """
    from compressed_tensors.offload import remove_dispatch
    from llmcompressor.args.dataset_arguments import DatasetArguments
    from llmcompressor.core import create_session
    from llmcompressor.modeling.moe.context import moe_calibration_context
    from llmcompressor.modeling.offset_norm import norm_calibration_context
    from llmcompressor.pipelines import CalibrationPipeline
    from torch.utils.data import DataLoader

    rows = [] if rows_NT is None else [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows_NT]
    batches = DataLoader(rows, batch_size=batch)  # pyright: ignore[reportArgumentType]
    with create_session() as session, norm_calibration_context(model), moe_calibration_context(), unpinned():
        session.initialize(model=model, start=-1, recipe=modifiers, calib_data=batches)
        CalibrationPipeline.from_modifiers(session.lifecycle.recipe.modifiers)(model, batches, DatasetArguments())
        session.finalize()
    return remove_dispatch(model, onload_tensors=True)


def scheme(model: nn.Module, weights: dict[str, Any], activations: dict[str, Any] | None = None) -> dict[str, Any]:
    """Arguments of a quantization modifier for every Linear that `calibrate.linears` names: all but head and routers.

    Experts get no zero point, whatever is asked: transformers' reader of packed experts knows none.
    """
    changed = calibrate.linears(model)
    ignore = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name not in changed]
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": activations}}
    if any(re.fullmatch(EXPERT, name) for name in changed):
        groups["experts"] = {"targets": [f"re:{EXPERT}"], "weights": weights | {"symmetric": True}}
    return {"config_groups": groups, "ignore": ignore}


def unfused(model: "PreTrainedModel") -> "PreTrainedModel":
    """In place, a Linear for every matrix of an expert instead of one Parameter for all, which packing can't take; they
    will be saved under the names that a checkpoint of the family gives them."""
    if not anatomy.has_experts(model):
        return model
    from llmcompressor.modeling.moe.linearize import linearize_moe
    from transformers.core_model_loading import WeightRenaming

    names = expert_names(model)
    others: list[Any] = [each for each in conversions(model) if not merges_experts(each)]
    renamed = [WeightRenaming(rf"\.experts\.(\d+)\.{own}\.", rf".experts.\1.{name}.") for name, own in names.items()]
    linearize_moe(model)
    vars(model)["_weight_conversions"] = others + renamed
    return model


def expert_names(model: "PreTrainedModel") -> dict[str, str]:
    """What a checkpoint calls the matrices of one expert, by the names that llmcompressor gives them; none where it
    holds all experts in one piece."""
    found = {}
    for converter in filter(merges_experts, conversions(model)):
        parts = PARTS.get(converter.target_patterns[0].rsplit(".", 1)[-1], ())
        found |= {part: source.split(".")[-2] for part, source in zip(parts, converter.source_patterns, strict=False)}
    return found


def conversions(model: "PreTrainedModel") -> list[Any]:
    """From names and shapes of a checkpoint to those of the network, as transformers read it."""
    return list(getattr(model, "_weight_conversions", None) or [])


def merges_experts(conversion: Any) -> bool:
    return any("experts.*." in source for source in conversion.source_patterns)


def feeds(model: "PreTrainedModel", technique: Quantization, norms: bool = False) -> anatomy.Feeds:
    """What writes channels that may be scaled, and what reads them; refused where nobody knows any. `norms`: only those
    that norms write."""
    found = tuple(each for each in anatomy.feeds(model) if not norms or "norm" in each[0])
    if not found:
        unknown = f"{technique.method} doesn't know which inputs it may scale in {model.config.model_type}"
        raise UserError(f"{technique.model}: {unknown}: take gptq or rtn")
    return found


def require_packable(model: "PreTrainedModel", variant: str, technique: Quantization) -> None:
    """Refuse, before any work, what the format would leave as it is, or nobody could read again."""
    kind = f"quantize.{variant}: {technique.model} is a {model.config.model_type}"
    for name, matrix in anatomy.matrices(model).items():
        if matrix.expert is not None:
            if not expert_names(model):
                raise UserError(f"{kind}, whose experts transformers reads in one piece, never packed: {OTHERWISE}")
            if not technique.packs_experts():
                raise UserError(f"{kind}; {technique.method} can't pack its experts ({name}): {EXPERTS_WORK}")
        elif matrix.transposed and technique.FORMAT == "compressed-tensors":
            raise UserError(f"{kind}; compressed-tensors can't pack its Conv1Ds ({name}): take nf4, or {OTHERWISE}")
    if strange := anatomy.unknown(model):
        raise UserError(f"{kind}; no technique can pack its {params.names(strange)}: {OTHERWISE}")
    if technique.FORMAT == "compressed-tensors" and not readable(model):
        raise UserError(f"{kind}, which transformers can't read packed by compressed-tensors: take nf4, or {OTHERWISE}")


def readable(model: "PreTrainedModel") -> bool:
    """Whether transformers' reader leaves weights alone that packing takes away: tried on a network without numbers.

    It initialises whatever a file does not fill, and some families (mamba) write into their matrices there.
    """
    with torch.device("meta"):
        twin = type(model)(copy.deepcopy(model.config))
    for module in twin.modules():
        module._is_hf_initialized = False  # type: ignore[assignment]
    for layer in calibrate.linears(twin).values():
        del layer.weight
    try:
        twin.initialize_weights()
    except AttributeError:
        return False
    return True


@torch.no_grad()
def round_rest(model: nn.Module, dtype: torch.dtype) -> None:
    """Round to the type they will be stored in: scales, embeddings, norms; not the weights that become integers."""
    stays = {id(layer.weight) for layer in model.modules() if hasattr(layer, "quantization_scheme")}
    stays |= {id(scale) for scale in expert_scales(model).values()}
    for parameter in model.parameters():
        if parameter.is_floating_point() and id(parameter) not in stays:
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
    scales = {layer: scale.data for layer, scale in expert_scales(model).items()}
    model.to(dtype)
    for layer, scale in scales.items():
        layer.weight_scale.data = scale
    return model


def expert_scales(model: nn.Module) -> dict[Any, Tensor]:
    """Stored in 32 bits: transformers multiplies experts out in the type of their scales, all others in its own."""
    layers = {name: layer for name, layer in calibrate.linears(model).items() if re.fullmatch(EXPERT, name)}
    return {layer: layer.get_parameter("weight_scale") for layer in layers.values()}


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
