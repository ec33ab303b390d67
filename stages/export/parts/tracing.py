"""What a tracer needs to see of a language model with a key-value cache: inputs, and which lengths are free."""

from typing import Any

import torch

from stages.lib.frame.errors import UserError
from stages.lib.nets import anatomy

AUTO = torch.export.Dim.AUTO
CHOOSE = "choose safetensors"


def require_cache(model: Any, name: str, parent: str) -> None:
    """Refuse what would only fail after minutes of tracing."""
    if not anatomy.attends(model):
        other = f"not {model.config.model_type} ({parent}): {CHOOSE}"
        raise UserError(f"{name} export knows models with keys and values in every block (llama, qwen, ...), {other}")
    if not anatomy.boundless(model):
        kind = f"{model.config.model_type} ({parent})"
        raise UserError(f"{name} export knows attention to the whole text, not in windows as in this {kind}: {CHOOSE}")


def example(model: Any, rows: int = 2) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of one call, and their free lengths: batch, new tokens, cached tokens."""
    model.cpu().requires_grad_(False)
    earlier, new = (torch.ones(rows, tokens, dtype=torch.int64) for tokens in (4, 3))  # any tokens, unlike lengths
    inputs = {
        "input_ids": new,
        "attention_mask": torch.ones(rows, 7, dtype=torch.int64),
        "position_ids": torch.arange(4, 7).repeat(rows, 1),
        "past_key_values": model(earlier, use_cache=True).past_key_values,
    }
    row, cache = {0: AUTO, 1: AUTO}, {0: AUTO, 2: AUTO}
    free = dict.fromkeys(inputs, row) | {"past_key_values": [cache] * 2 * model.config.num_hidden_layers}
    return inputs, free
