"""Attention inside packed rows: every example by itself, beside others of about its length.

The same numbers as with a block-diagonal mask over whole rows (Krell et al. 2021, arXiv:2107.02027, section 3.2.2), for
the sum of the squares of the examples' lengths instead of T^2 a row. In groups of examples up to twice as long as each
other, filled up on the right, where a causal mask looks at nothing. On a CPU in float32 also under autocast: PyTorch's
bfloat16 kernel is slower backward than the float32 one (2 to 3 times at T = 80).
Shapes: B rows, T positions, H heads, D width of a head, E examples of a group, L the longest of them.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stages.lib.nets import anatomy

NAME = "packed"


class Layout(NamedTuple):
    """Which tokens belong together; a token's number counts through all rows."""

    groups: list[Tensor]  # (E, L): the tokens' numbers
    back_N: Tensor  # for every token its place behind the groups; for one alone, such as padding, anybody's


def layout(positions_BT: Tensor) -> Layout:
    """An example begins at every position 0."""
    flat_N = positions_BT.flatten()
    begin_E = (flat_N == 0).nonzero().flatten()
    length_E = begin_E.diff(append=begin_E.new_tensor([len(flat_N)]))
    octave_E = (length_E - 1).float().log2().floor()  # 2 tokens: 0; 3, 4: 1; 5 to 8: 2; ...
    groups, back_N, filled = [], torch.zeros_like(flat_N), 0
    for octave in octave_E[length_E > 1].unique():
        begins_E, lengths_E = begin_E[octave_E == octave], length_E[octave_E == octave]
        step_L = torch.arange(int(lengths_E.max()), device=flat_N.device)
        group_EL = begins_E[:, None] + step_L.minimum(lengths_E[:, None] - 1)
        own_EL = step_L < lengths_E[:, None]
        back_N[group_EL[own_EL]] = filled + own_EL.flatten().nonzero().flatten()
        groups.append(group_EL)
        filled += group_EL.numel()
    return Layout(groups, back_N)


def separable(model: Any) -> bool:
    """Whether positions keep the examples of a row apart: nothing recurs, and the network is told them."""
    return not anatomy.recurrent(model) and "position_ids" in inspect.signature(model.get_decoder().forward).parameters


@contextmanager
def examples(model: Any, positions_BT: Tensor | None) -> Iterator[dict[str, Any]]:
    """What the network needs to keep the examples apart: besides their positions the layout, where it can be used.

    That is where every layer looks back over the whole example; else transformers makes the masks of its layers, here
    and not in the model's own forward, for not every family (gpt_oss) tells its masks the positions.
    """
    if positions_BT is None:
        yield {}
    elif model._supports_attention_backend and model.config._attn_implementation == "sdpa" and anatomy.boundless(model):
        with attending(model, NAME):
            yield {"position_ids": positions_BT, "layout": layout(positions_BT)}
    else:
        yield {"position_ids": positions_BT, "attention_mask": masks(model, positions_BT)}


def masks(model: Any, positions_BT: Tensor) -> Any:
    """Block-diagonal masks, one, or one for every kind of layer by its name, as the network's forward takes them."""
    from transformers.masking_utils import create_masks_for_generate

    like_BT1 = model.get_input_embeddings().weight.new_empty(*positions_BT.shape, 1)  # type, device and sizes
    return create_masks_for_generate(model.config, like_BT1, None, None, positions_BT)


@contextmanager
def attending(model: Any, implementation: str) -> Iterator[None]:
    """Another way to compute attention, and only inside."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention)
    usual = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def attention(
    module: Any, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, _: None, *, layout: Layout, **more: Any
) -> tuple[Tensor, None]:
    """As transformers calls it: heads before positions in, behind them out. Keys and values may have fewer heads."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    heads = (query_BHTD, key_BHTD, value_BHTD)  # rotated in 32 bits, or not at all, under autocast
    rows = [x.to(query_BHTD.dtype).transpose(1, 2).flatten(0, 1) for x in heads]
    parts = []
    for group_EL in layout.groups:
        q, k, v = (x.index_select(0, group_EL.flatten()).unflatten(0, group_EL.shape).transpose(1, 2) for x in rows)
        with torch.autocast("cpu", enabled=False):
            parts.append(sdpa_attention_forward(module, q, k, v, None, is_causal=True, **more)[0].flatten(0, 1))
    shape = (query_BHTD.shape[0], query_BHTD.shape[2])
    return torch.cat(parts).index_select(0, layout.back_N).unflatten(0, shape), None
