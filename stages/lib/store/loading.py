"""Checkpoints as they lie in the world, opened so that nothing of them is lost and nothing made up.

A folder in the Hugging Face layout, or a GGUF file in it, becomes a dense causal language model whose every weight came
from the file. What transformers says of one that it can't open is put into one line here, and only here. `source` is
what the user called it: every message begins with it.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.lib.frame.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
STORED = "stored"  # a dtype: that of the file
UNPACKED = ("compressed-tensors", "fp8", "mxfp4", "bitsandbytes")  # what transformers can dequantize without a GPU
PLAIN_TEXT = {  # text parts of composite models that have no causal class, and what they are where all is text
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}


@contextmanager
def opening(source: object) -> Iterator[None]:
    """Whatever goes wrong in the readers of others becomes one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (UserError, MemoryError):
        raise
    except SafetensorError as error:
        raise UserError(f"{source} is damaged: {first_line(error)}") from error
    except Exception as error:
        raise UserError(f"{source} can't be opened: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:300]}"


def load(folder: Path, source: object, dtype: str = "float32", gguf_file: str | None = None) -> "PreTrainedModel":
    """The checkpoint as a dense causal language model on the CPU: packed weights unpacked, the text part of a composite
    one taken out, a head that differs from the embedding kept. `dtype`: torch's name, or that of the file, "stored"."""
    if gguf_file:
        from transformers import GgufConfig

        whole = GgufConfig(gguf_file=gguf_file, dequantize=True)
        return as_it_is(read(folder, source, dtype, gguf_file=gguf_file, quantization_config=whole), source)
    config = read_config(folder, source)
    require_weights(folder, source)
    if packing := getattr(config, "quantization_config", None):
        model = unpacked(folder, source, config, packing, dtype)
    else:
        model = read(folder, source, dtype, config)
    return as_it_is(text_part(model, source), source)


def read_config(folder: Path, source: object) -> "PreTrainedConfig":
    """What config.json says, of a model that transformers knows and that speaks."""
    import transformers
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as COMPOSITE

    if not (folder / "config.json").is_file():
        raise UserError(f"{source} is no model in Hugging Face's layout: config.json is missing")
    with opening(source):
        about = json.loads((folder / "config.json").read_text())
    kind = about.get("model_type") if isinstance(about, dict) else None
    if not kind:
        raise UserError(f"{source} is no model in Hugging Face's layout: its config.json names no model_type")
    if kind not in CONFIG_MAPPING_NAMES:
        if code := about.get("auto_map"):
            raise UserError(
                f"{source} is of type {kind!r}, custom code ({next(iter(code.values()))}), which is never run here: "
                "take a model that transformers knows by itself"
            )
        raise UserError(f"{source} is of type {kind!r}, which transformers {transformers.__version__} does not know")
    with opening(source):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if type(config) not in CAUSAL and type(config) not in COMPOSITE:
        raise UserError(f"{source} is of type {kind!r}, which is no causal language model")
    return config


def require_weights(folder: Path, source: object) -> None:
    """Refuse pickles and lost shards before anything is read."""
    if not list(folder.glob("*.safetensors")):
        if pickled := sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED):
            raise UserError(
                f"{source} holds pickled weights ({pickled[0]}), which can run code when they are opened: "
                "name a revision with .safetensors files, or convert it where you trust it"
            )
        raise UserError(f"{source} holds no weights: no .safetensors file")
    if (folder / INDEX).is_file() and not (folder / "model.safetensors").is_file():
        with opening(source):
            shards = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        if strays := [name for name in shards if Path(name).name != name]:
            raise UserError(f"{source}: {INDEX} names {strays[0]!r}, which is no file of this folder")
        if lost := [name for name in shards if not (folder / name).is_file()]:
            raise UserError(f"{source} is not complete: {listed(lost)} of {len(shards)} shards missing")


def read(
    folder: Path, source: object, dtype: str, config: "PreTrainedConfig | None" = None, **arguments: Any
) -> "PreTrainedModel":
    """The model as it is stored, packed weights still packed; refused where file and config.json differ."""
    import torch

    quiet()
    with opening(source):
        model, info = auto_class(config).from_pretrained(
            folder,
            config=config,
            dtype="auto" if dtype == STORED else getattr(torch, dtype),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,  # None would ask, and a "y" would run what lies in the folder
            ignore_mismatched_sizes=True,  # so that they are listed
            output_loading_info=True,
            **arguments,
        )
    require_all(source, **{name: info[f"{name}_keys"] for name in ("missing", "unexpected", "mismatched")})
    return with_caps(model)


def with_caps(model: "PreTrainedModel") -> "PreTrainedModel":
    """The model, its attention computed by a kernel that caps its logits where config.json does (Gemma 2): the fast one
    of transformers leaves the caps out without a word."""
    if getattr(model.config.get_text_config(decoder=True), "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")
    return model


def auto_class(config: "PreTrainedConfig | None") -> Any:
    """The one that reads all of a composite model, or the usual one."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as COMPOSITE

    if config is None or type(config) not in COMPOSITE or config.get_text_config(decoder=True) is config:
        return AutoModelForCausalLM
    return AutoModelForImageTextToText


def require_all(source: object, missing: set[str], unexpected: set[str], mismatched: Iterable[tuple[Any, ...]]) -> None:
    """Refuse a model of which a part would stay as it was drawn, or a file of which a part would be left out."""
    if missing and (prefix := common_prefix(missing, unexpected)):
        raise UserError(f"{source} has names that all begin with {prefix!r}, as wrappers save them: save it unwrapped")
    if missing:
        instead = f"; it has {listed(unexpected)} instead" if unexpected else ""
        raise UserError(f"{source} lacks weights that its config.json asks for: {listed(missing)}{instead}")
    if unexpected:
        raise UserError(f"{source} holds weights that its config.json has no place for: {listed(unexpected)}")
    for name, stored, wanted in sorted(mismatched):
        sizes = " x ".join(map(str, stored)), " x ".join(map(str, wanted))
        raise UserError(f"{source} has {name} of {sizes[0]}, but its config.json makes it {sizes[1]}")


def common_prefix(missing: set[str], unexpected: set[str]) -> str:
    """What stands before every name of the file that config.json asks for; "" if it is not that."""
    name = min(unexpected, default="")
    prefix = next((name.removesuffix(wanted) for wanted in missing if name.endswith(f".{wanted}")), "")
    return prefix if all(other.startswith(prefix) for other in unexpected) else ""


def listed(names: Iterable[str]) -> str:
    first, *more = sorted(names)
    return f"{first} and {len(more)} more" if more else first


def unpacked(folder: Path, source: object, config: Any, packing: Any, dtype: str) -> "PreTrainedModel":
    """Integers or small floats as plain weights; only what a dense model has is kept."""
    import torch

    method = packing["quant_method"] if isinstance(packing, dict) else packing.quant_method
    if method not in UNPACKED:
        raise UserError(
            f"{source} is quantized by {method}, which can't be unpacked here (only {', '.join(UNPACKED)} can): "
            "name the model that it was made from"
        )
    wide = "float32" if dtype == STORED else dtype
    if method == "bitsandbytes":
        whole = read(folder, source, wide, config)
        weights = decoded(whole, source)
    else:
        packing["dequantize"] = True
        whole = read(folder, source, wide, config)
        weights = whole.state_dict()
    plain: Any = whole.config
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config
    with opening(source):
        dense = auto_class(plain).from_config(plain, dtype=getattr(torch, wide))
        dense.load_state_dict({name: weights[name] for name in dense.state_dict()})
    return with_caps(dense.eval())


def decoded(model: Any, source: object) -> "dict[str, Tensor]":
    """What bitsandbytes' codes stand for, as it was laid out: of a Conv1D it makes a Linear."""
    from transformers.pytorch_utils import Conv1D

    transposed = {f"{n}.weight" for n, each in model.named_modules() if getattr(each, "source_cls", None) is Conv1D}
    with opening(source):
        weights = model.dequantize().state_dict()
    return {name: weight.T if name in transposed else weight for name, weight in weights.items()}


def text_part(whole: Any, source: object) -> "PreTrainedModel":
    """The language model of one that also sees or hears, where all it reads is text; others as they are."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as CAUSAL

    config = whole.config.get_text_config(decoder=True)
    if config is whole.config:
        return whole
    if kind := PLAIN_TEXT.get(config.model_type):
        about = config.to_dict()
        for name in ("mrope_section", "mrope_interleaved", "type"):
            about["rope_parameters"].pop(name, None)
        about["rope_parameters"]["rope_type"] = "default"
        config = CONFIG_MAPPING[kind](**{name: value for name, value in about.items() if name != "model_type"})
    if type(config) not in CAUSAL:
        raise UserError(f"{source} is {whole.config.model_type}, of which the text part can't be taken out alone")
    text = with_caps(AutoModelForCausalLM.from_config(config, dtype=whole.dtype).eval())
    weights: dict[str, Tensor] = {
        f"{text.base_model_prefix}.{name}": weight for name, weight in whole.get_decoder().state_dict().items()
    }
    head = next(name for name, module in text.named_modules() if module is text.get_output_embeddings())
    weights[f"{head}.weight"] = whole.get_output_embeddings().weight
    with opening(source):
        text.load_state_dict(weights)
    text.generation_config = whole.generation_config
    ids = torch.arange(1, 17)[None]
    with torch.inference_mode():
        if not torch.allclose(text(ids).logits.float(), whole(input_ids=ids).logits.float(), rtol=1e-2, atol=1e-2):
            raise UserError(f"{source} is {whole.config.model_type}, whose text part says something else alone")
    return text


def as_it_is(model: "PreTrainedModel", source: object) -> "PreTrainedModel":
    """config.json says what is so: whether the head is the embedding, no code beside it, no way of decoding but where
    an answer ends (a greedy answer is the likeliest, whatever others advise)."""
    from transformers import GenerationConfig

    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    config: Any = model.config
    tied = head.weight is embedding.weight
    if config.tie_word_embeddings and not tied:
        print(f"{source}: its config.json ties the head to the embedding, but its file has another head, which is kept")
    config.tie_word_embeddings = tied
    if hasattr(config, "auto_map"):
        del config.auto_map
    if advised := model.generation_config:
        ids = {name: getattr(advised, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model.generation_config = GenerationConfig(**ids)
    return model


def quiet() -> None:
    """No progress bars for what is read in a blink, no report where a line says the same."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
