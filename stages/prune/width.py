"""Width: keep the heads, feed-forward channels and hidden channels that are most active. Muralidharan et al. 2024
(Minitron), arXiv:2407.14679, section 2.2.

    importance_d = sqrt( sum_n ( mean_t |a_ntd| )^2 )

a are what the output projection reads (of a head: the norm of its values), what the down projection reads, and what the
norms of the residual stream hand on, summed over the norms. Where queries share keys, whole groups stay or go, by the
sum of their heads, and a group that stays keeps as many heads as any other. What is left is a smaller model of the same
architecture, to be trained again. A gain grows with the root mean square of what its norm has normalised, over the
channels that stay, so that channels which carry nothing go without a trace. Cost: one forward pass for all shapes.
Shapes: N rows, T context, H heads, D channels of whatever kind.
"""

import copy
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Calibration
from stages.lib.nets import calibrate
from stages.prune import Pruning

KNOWN = ("llama", "mistral", "qwen2", "qwen3")  # decoders of exactly these layers
ROWS = {"q_proj": "queries", "k_proj": "keys", "v_proj": "keys", "gate_proj": "ffn", "up_proj": "ffn"}
COLUMNS = {"o_proj": "queries", "down_proj": "ffn"}
NORMS = ("input_layernorm", "post_attention_layernorm", "norm")


class Params(Pruning):
    method: Literal["width"]
    hidden: PositiveInt | None = None  # none of these: as wide as it was
    ffn: PositiveInt | None = None
    heads: PositiveInt | None = None
    kv_heads: PositiveInt | None = None
    calibration: Calibration = Calibration()

    @model_validator(mode="after")
    def narrower(self) -> "Params":
        if not (self.hidden or self.ffn or self.heads or self.kv_heads):
            raise ValueError("give at least one of hidden, ffn, heads and kv_heads")
        return self


def prune(model: Any, scores_D: dict[str, Tensor], p: Params) -> nn.Module:
    config = shape(model, p)
    hidden = best(sum(each for name, each in scores_D.items() if name.endswith("norm")), config.hidden_size)
    blocks = [chosen(model.config, config, scores_D, number) for number in range(config.num_hidden_layers)]
    small = type(model)(config).to(model.device, model.dtype).eval()
    weights = {name: cut(name, weight, hidden, blocks) for name, weight in model.state_dict().items()}
    for name, energy_D in ((n.removesuffix(".energy"), e) for n, e in scores_D.items() if n.endswith(".energy")):
        weights[f"{name}.weight"] *= energy_D[hidden].mean().sqrt().to(model.device, model.dtype)
    small.load_state_dict(weights)
    small.generation_config = model.generation_config
    return small


def shape(model: Any, p: Params) -> Any:
    """The new config; refuses what the model is not, or no model can be, before any work."""
    config = copy.deepcopy(model.config)
    if config.model_type not in KNOWN:
        raise UserError(f"{p.model} is a {config.model_type}; width can narrow: {', '.join(KNOWN)}")
    config.head_dim = calibrate.blocks(model)[0].self_attn.head_dim  # pyright: ignore[reportAttributeAccessIssue]
    keys = {"hidden": "hidden_size", "ffn": "intermediate_size"}
    keys |= {"heads": "num_attention_heads", "kv_heads": "num_key_value_heads"}
    for name, key in keys.items():
        wanted, present = getattr(p, name) or getattr(config, key), getattr(config, key)
        if wanted > present:
            raise UserError(f"{name} is {wanted}, but {p.model} has no more than {present}")
        setattr(config, key, wanted)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    group = model.config.num_attention_heads // model.config.num_key_value_heads
    if heads % kv_heads or heads // kv_heads > group:
        raise UserError(
            f"{heads} heads for {kv_heads} kv_heads; {p.model} has groups of {group}: keep as many or fewer"
        )
    if config.hidden_size % heads:  # transformers refuses such a config
        raise UserError(f"hidden is {config.hidden_size}, which is no multiple of {heads} heads")
    return config


@torch.no_grad()
def score(model: Any, rows_NT: Tensor, p: Params) -> dict[str, Tensor]:
    """By module name: importance of the heads or channels it reads, or, if a norm, of those it hands on; and, as
    NAME.energy, a norm's mean square of what it has normalised, before its gain."""
    shape(model, p)
    sums_D: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=model.device))

    def add(name: str, a_NTD: Tensor) -> None:
        sums_D[name] = sums_D[name] + a_NTD.float().abs().mean(1).square().sum(0)

    def reads(name: str, heads: int) -> Callable[..., None]:
        """Heads are seen by the norm of their values; without heads every input is a channel of its own."""
        return lambda _, x: add(name, x[0].unflatten(-1, (heads, -1)).norm(dim=-1) if heads else x[0])

    def hands_on(name: str) -> Callable[..., None]:
        def see(_norm: Any, inputs: Any, a_NTD: Tensor) -> None:
            squares_NTD = inputs[0].float().square()
            share_NTD = squares_NTD / squares_NTD.mean(-1, keepdim=True).clamp_min(1e-30)
            add(name, a_NTD)
            sums_D[f"{name}.energy"] = sums_D[f"{name}.energy"] + share_NTD.mean(1).sum(0) / len(rows_NT)

        return see

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            last = name.rsplit(".", 1)[-1]
            if last in COLUMNS:
                heads = model.config.num_attention_heads if last == "o_proj" else 0
                hooks.enter_context(module.register_forward_pre_hook(reads(name, heads)))
            elif last in NORMS:
                hooks.enter_context(module.register_forward_hook(hands_on(name)))
        calibrate.run(model, rows_NT)
    return {name: each if name.endswith(".energy") else each.sqrt() for name, each in sums_D.items()}


def best(score_D: Any, count: int) -> Tensor:
    """The places of the `count` largest, in their old order; of equals the first."""
    return score_D.argsort(descending=True, stable=True)[:count].sort().values


def chosen(old: Any, new: Any, scores_D: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """What stays of block `number`: rows of its queries, of its keys and values, and feed-forward channels."""
    head_HG = scores_D[f"model.layers.{number}.self_attn.o_proj"].view(old.num_key_value_heads, -1)
    groups = best(head_HG.sum(1), new.num_key_value_heads)
    each = new.num_attention_heads // new.num_key_value_heads
    heads = torch.cat([group * head_HG.shape[1] + best(head_HG[group], each) for group in groups])
    within = torch.arange(new.head_dim, device=heads.device)
    rows = {"queries": heads, "keys": groups}
    return {
        **{name: (numbers[:, None] * new.head_dim + within).flatten() for name, numbers in rows.items()},
        "ffn": best(scores_D[f"model.layers.{number}.mlp.down_proj"], new.intermediate_size),
    }


def cut(name: str, weight: Tensor, hidden: Tensor, blocks: list[dict[str, Tensor]]) -> Tensor:
    """A weight or bias without the rows and columns that go."""
    layer = name.split(".")[-2]
    block = blocks[int(name.split(".")[2])] if ".layers." in name else {}
    rows = block[ROWS[layer]] if layer in ROWS else hidden if layer in (*COLUMNS, *NORMS) else None
    columns = block[COLUMNS[layer]] if layer in COLUMNS else hidden
    if rows is not None:
        weight = weight[rows]
    return weight[:, columns] if weight.ndim == 2 else weight
