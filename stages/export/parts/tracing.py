"""What a tracer needs to see of a language model with a key-value cache: inputs, and which lengths are free."""

from typing import Any

import torch

from stages.lib.frame.errors import UserError
from stages.lib.nets import anatomy

AUTO = torch.export.Dim.AUTO
CHOOSE = "choose safetensors"


def require_cache(model: Any, name: str, parent: str, windows: bool = True) -> None:
    """Refuse what would only fail after minutes of tracing; `windows`: whether layers may look back less far."""
    kind = f"{model.config.model_type} ({parent})"
    if not anatomy.attends(model) or anatomy.recurrent(model):
        knows = "models with keys and values, and no other state, in every block (llama, gemma, ...)"
        raise UserError(f"{name} export knows {knows}, not {kind}: {CHOOSE}")
    if not windows and not anatomy.boundless(model):
        raise UserError(f"{name} export knows attention to the whole text, not in windows as in this {kind}: {CHOOSE}")


def require_dense(model: Any, name: str, type: str, plain: str, parent: str) -> None:
    """Refuse to call a file rounded whose experts are not: what rounds a graph knows products with one matrix."""
    if anatomy.has_experts(model):
        kind = f"{model.config.model_type} ({parent})"
        raise UserError(f"{name} {type} can't round the experts of this {kind}: take {plain}, or rtn and safetensors")


def example(model: Any, rows: int = 2) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of one call, and their free lengths: batch, new tokens, cached tokens."""
    from transformers import DynamicCache

    model.cpu().requires_grad_(False)
    earlier, new = (torch.ones(rows, tokens, dtype=torch.int64) for tokens in (4, 3))  # any tokens, unlike lengths
    inputs = {
        "input_ids": new,
        "attention_mask": torch.ones(rows, 7, dtype=torch.int64),
        "position_ids": torch.arange(4, 7).repeat(rows, 1),
        # of whole layers, also where a layer has a window: the mask keeps to it, whatever the cache holds
        "past_key_values": model(earlier, past_key_values=DynamicCache(), use_cache=True).past_key_values,
    }
    row, cache = {0: AUTO, 1: AUTO}, {0: AUTO, 2: AUTO}
    free = dict.fromkeys(inputs, row) | {"past_key_values": [cache] * 2 * model.config.num_hidden_layers}
    return inputs, free
