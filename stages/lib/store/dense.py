"""A model artefact as plain 32-bit floats, whatever it is stored as; or as it is stored."""

from pathlib import Path
from typing import Any

from stages.lib.store import models


def load(folder: Path) -> Any:
    """Packed integers (compressed-tensors) become q * scale, codes (bitsandbytes) what they stand for; only weights
    that a dense model has are kept."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model = models.load(folder)
    about = getattr(model.config, "quantization_config", None)
    if about is None:
        return model
    config: Any = AutoConfig.from_pretrained(folder)
    if about.quant_method == "bitsandbytes":
        unpacked = decoded(model)
    else:
        config.quantization_config["dequantize"] = True
        unpacked = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).state_dict()
    del config.quantization_config
    dense = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    dense.load_state_dict({name: unpacked[name] for name in dense.state_dict()})
    return dense.eval()


def decoded(model: Any) -> dict[str, Any]:
    """The weights as they were laid out: bitsandbytes makes a Linear of a Conv1D."""
    from transformers.pytorch_utils import Conv1D

    transposed = {f"{n}.weight" for n, each in model.named_modules() if getattr(each, "source_cls", None) is Conv1D}
    weights = model.dequantize().float().state_dict()
    return {name: weight.T if name in transposed else weight for name, weight in weights.items()}


def stored(folder: Path) -> Any:
    """Nothing unpacked, nothing widened: what is saved again has the bytes that were loaded."""
    from transformers import AutoModelForCausalLM

    models.quiet()
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
