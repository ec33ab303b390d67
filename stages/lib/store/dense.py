"""A model artefact as plain 32-bit floats, whatever it is stored as; or as it is stored."""

from pathlib import Path
from typing import Any

from stages.lib.store import models


def load(folder: Path) -> Any:
    """Packed integers (compressed-tensors) become q * scale; only weights that a dense model has are kept."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model = models.load(folder)
    about = getattr(model.config, "quantization_config", None)
    if about is None:
        return model
    if about.quant_method == "bitsandbytes":
        return transposed(model).float().eval()
    config: Any = AutoConfig.from_pretrained(folder)
    config.quantization_config["dequantize"] = True
    unpacked = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).state_dict()
    del config.quantization_config
    dense = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    dense.load_state_dict({name: unpacked[name] for name in dense.state_dict()})
    return dense.eval()


def transposed(model: Any) -> Any:
    """Unpacked; what was a Conv1D is one again, for bitsandbytes makes it a Linear."""
    from transformers.pytorch_utils import Conv1D

    names = [name for name, each in model.named_modules() if getattr(each, "source_cls", None) is Conv1D]
    model = model.dequantize()
    for name in names:
        linear = model.get_submodule(name)
        conv = Conv1D(linear.out_features, linear.in_features)
        conv.weight.data, conv.bias = linear.weight.data.T.contiguous(), linear.bias
        model.set_submodule(name, conv)
    return model


def stored(folder: Path) -> Any:
    """Nothing unpacked, nothing widened: what is saved again has the bytes that were loaded."""
    from transformers import AutoModelForCausalLM

    models.quiet()
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
