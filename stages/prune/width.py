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
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from stages.lib.frame import params
from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Calibration
from stages.lib.nets import anatomy, calibrate
from stages.lib.nets.anatomy import Axis, Heads, Space
from stages.prune import Pruning

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from stages.prune.parts.given import Given

SIZES = {  # of a plain decoder, as its config names them
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
}


class Width(Pruning):
    method: Literal["width"]
    hidden: PositiveInt | None = None  # none of these: as wide as it was
    ffn: PositiveInt | None = None
    heads: PositiveInt | None = None
    kv_heads: PositiveInt | None = None
    calibration: Calibration = Calibration()

    @model_validator(mode="after")
    def narrower(self) -> "Width":
        if not (self.hidden or self.ffn or self.heads or self.kv_heads):
            raise ValueError("give at least one of hidden, ffn, heads and kv_heads")
        return self

    @torch.no_grad()
    def prune(self, model: "PreTrainedModel", given: "Given") -> "PreTrainedModel":
        config = self.narrowed(model)
        scores_D = given.once(lambda: self.score(model, given.rows), model.device)
        norms = {norm.name for norm in anatomy.norms(model)}
        hidden = best(sum(score_D for name, score_D in scores_D.items() if name in norms), config.hidden_size)
        inner = chosen(model, config.intermediate_size, anatomy.heads(model.config), anatomy.heads(config), scores_D)
        places = {Axis("hidden"): hidden} | inner
        small = type(model)(config).to(model.device, model.dtype).eval()  # pyright: ignore[reportArgumentType]
        axes = anatomy.axes(model)
        weights = {name: anatomy.take(weight, axes[name], places) for name, weight in model.state_dict().items()}
        for name in norms:
            weights[f"{name}.weight"] *= scores_D[f"{name}.energy"][hidden].mean().sqrt().to(model.device, model.dtype)
        small.load_state_dict(weights)
        small.generation_config = model.generation_config
        return small

    def narrowed(self, model: "PreTrainedModel") -> "PreTrainedConfig":
        """The new config; refuses what the model is not, or no model can be, before any work."""
        if not anatomy.is_plain(model):
            raise self.refusal(model, f"narrow: {params.names(anatomy.PLAIN)}")
        config, old = copy.deepcopy(model.config), anatomy.heads(model.config)
        config.head_dim = old.size
        for name, key in SIZES.items():
            wanted, present = getattr(self, name) or getattr(config, key), getattr(config, key)
            if wanted > present:
                raise UserError(f"{name} is {wanted}, but {self.model} has no more than {present}")
            setattr(config, key, wanted)
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        group = old.queries // old.keys_values
        if heads % kv_heads or heads // kv_heads > group:
            raise UserError(
                f"{heads} heads for {kv_heads} kv_heads; {self.model} has groups of {group}: keep as many or fewer"
            )
        if config.hidden_size % heads:  # transformers refuses such a config
            raise UserError(f"hidden is {config.hidden_size}, which is no multiple of {heads} heads")
        return config

    @torch.no_grad()
    def score(self, model: "PreTrainedModel", rows_NT: Tensor) -> dict[str, Tensor]:
        """By module name: importance of the heads or channels it reads, or, if a norm, of those it hands on; and, as
        NAME.energy, a norm's mean square of what it has normalised, before its gain."""
        sums_D: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=model.device))

        def add(name: str, a_NTD: Tensor) -> None:
            sums_D[name] = sums_D[name] + a_NTD.float().abs().mean(1).square().sum(0)

        def reads(name: str, heads: int) -> Callable[..., None]:
            """Heads are judged by the norm of their values; without heads every input is a channel of its own."""
            return lambda _, x: add(name, x[0].unflatten(-1, (heads, -1)).norm(dim=-1) if heads else x[0])

        def hands_on(name: str) -> Callable[..., None]:
            def see(_: nn.Module, inputs: tuple[Tensor], a_NTD: Tensor) -> None:
                squares_NTD = inputs[0].float().square()
                share_NTD = squares_NTD / squares_NTD.mean(-1, keepdim=True).clamp_min(1e-30)
                add(name, a_NTD)
                sums_D[f"{name}.energy"] = sums_D[f"{name}.energy"] + share_NTD.mean(1).sum(0) / len(rows_NT)

            return see

        heads = anatomy.heads(model.config).queries
        with ExitStack() as hooks:
            for axis, name in readers(model).items():
                hook = reads(name, heads if axis.space == "mixed" else 0)
                hooks.enter_context(model.get_submodule(name).register_forward_pre_hook(hook))
            for norm in anatomy.norms(model):
                hooks.enter_context(norm.module.register_forward_hook(hands_on(norm.name)))
            calibrate.run(model, rows_NT)
        return {name: total if name.endswith(".energy") else total.sqrt() for name, total in sums_D.items()}


def readers(model: "PreTrainedModel") -> dict[Axis, str]:
    """What reads the values of a block's heads, and what reads its feed-forward channels."""
    columns = {axes[1]: name for name, axes in anatomy.axes(model).items() if len(axes) == 2}
    return {axis: name.removesuffix(".weight") for axis, name in columns.items() if axis.space in ("mixed", "ffn")}


def best(score_D: Any, count: int) -> Tensor:
    """The places of the `count` largest, in their old order; of equals the first."""
    return score_D.argsort(descending=True, stable=True)[:count].sort().values


def chosen(
    model: "PreTrainedModel", ffn: int, old: Heads, new: Heads, scores_D: Mapping[str, Tensor]
) -> dict[Axis, Tensor]:
    """What stays of every block: `ffn` feed-forward channels, and the channels of so many heads."""
    places: dict[Axis, Tensor] = {}
    for axis, name in readers(model).items():
        if axis.space == "ffn":
            places[axis] = best(scores_D[name], ffn)
        else:
            own = chosen_heads(scores_D[name], old, new)
            places |= {Axis(space, axis.block): channels for space, channels in own.items()}
    return places


def chosen_heads(score_D: Tensor, old: Heads, new: Heads) -> dict[Space, Tensor]:
    """What stays of queries and of the values they mix, and of keys and values; G queries share a key."""
    score_HG = score_D.view(old.keys_values, -1)
    groups = best(score_HG.sum(1), new.keys_values)
    count = new.queries // new.keys_values
    heads = torch.cat([group * score_HG.shape[1] + best(score_HG[group], count) for group in groups])
    within = torch.arange(new.size, device=heads.device)
    queries, keys = ((numbers[:, None] * new.size + within).flatten() for numbers in (heads, groups))
    return {"queries": queries, "mixed": queries, "keys": keys, "values": keys}
