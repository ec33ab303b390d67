"""AutoAWQ, run by the interpreter of its own environment: MODEL (with rows.json) OUT GROUP CLIP. Writes the rounded
weights as ordinary ones, because what reads AutoAWQ's packing on a CPU is AutoAWQ."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from awq import AutoAWQForCausalLM  # pyright: ignore[reportMissingImports]
from awq.utils.packing_utils import dequantize_gemm  # pyright: ignore[reportMissingImports]
from safetensors.torch import save_file

BITS = 4


def main(source: Path, out: Path, group: int, clip: bool) -> None:
    rows = json.loads((source / "rows.json").read_text())
    model: Any = AutoAWQForCausalLM.from_pretrained(str(source), torch_dtype=torch.float32, device_map="cpu")
    for layer in model.model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_state_dict_post_hook(copy)
    config = {"zero_point": True, "q_group_size": group, "w_bit": BITS, "version": "GEMM"}
    size = {"max_calib_samples": len(rows), "max_calib_seq_len": len(rows[0])}
    model.quantize(None, quant_config=config, calib_data=rows, apply_clip=clip, **size)
    state = dict(model.model.state_dict())
    for name, layer in model.model.named_modules():
        if hasattr(layer, "qweight"):
            parts = {part: state.pop(f"{name}.{part}") for part in ("qweight", "qzeros", "scales")}
            weight_IO = dequantize_gemm(*parts.values(), BITS, group)
            state[f"{name}.weight"] = weight_IO.T
    state.pop("lm_head.weight", None)  # tied
    save_file(
        {name: each.float().contiguous() for name, each in state.items()}, out / "model.safetensors", {"format": "pt"}
    )


def copy(layer: Any, state: dict[str, torch.Tensor], prefix: str, _: Any) -> None:
    """What AutoAWQ puts back after each try it keeps with `.cpu()`, which on a CPU is no copy: the first try's scales
    would stay in the weights (perplexity 75,000)."""
    state.update({name: each.clone() for name, each in state.items() if name.startswith(prefix)})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "clip")
