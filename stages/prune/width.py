"""Width: keep the heads, feed-forward channels and hidden channels that are most active. Muralidharan et al. 2024
(Minitron), arXiv:2407.14679, section 2.2.

    importance_d = sqrt( sum_n ( mean_t |a_ntd| )^2 )

a are what the output projection reads (of a head: the norm of its values), what the down projection reads, and what the
norms of the residual stream hand on, summed over the norms. Where queries share keys, whole groups stay or go, by the
sum of their heads, and a group that stays keeps as many heads as any other. What is left is a smaller model of the same
architecture, to be trained again. A gain grows with the root mean square of what its norm has normalised, over the
channels that stay, so that channels which carry nothing go without a trace; where a norm takes the mean off, those that
carry nothing but the mean. Cost: one forward pass for all shapes.
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
        scales, hidden_axis = anatomy.scales(model), Axis("hidden")
        seen = sum(scores_D[norm.name] for norm in scales if norm.axis == hidden_axis)
        places = {hidden_axis: best(seen, config.hidden_size)} | chosen(model, config, scores_D)
        small = type(model)(config).to(model.device, model.dtype).eval()  # pyright: ignore[reportArgumentType]
        axes = anatomy.axes(model)
        weights = {name: anatomy.take(weight, axes[name], places) for name, weight in model.state_dict().items()}
        for norm in scales:
            if norm.axis in places:
                energy_D = scores_D[f"{norm.name}.energy"][places[norm.axis]]
                grown = energy_D.mean().sqrt().to(model.device, model.dtype)
                weights[norm.gain] = (weights[norm.gain] + norm.offset) * grown - norm.offset
        anatomy.rescale_embedding(model, small, weights)
        small.load_state_dict(weights)
        small.generation_config = model.generation_config
        return small

    def narrowed(self, model: "PreTrainedModel") -> "PreTrainedConfig":
        """The new config; refuses what the model is not, or no model can be, before any work."""
        if model.config.model_type not in anatomy.AXES:
            raise self.refusal(model, f"narrow: {params.names(anatomy.AXES)}")
        config, old = copy.deepcopy(model.config), anatomy.heads(model.config)
        present = {
            "hidden": config.hidden_size,
            "ffn": anatomy.ffn(config),
            "heads": old.queries,
            "kv_heads": old.keys_values,
        }
        wanted = {name: getattr(self, name) or count for name, count in present.items()}
        if old.queries == old.keys_values and not self.kv_heads:
            wanted["kv_heads"] = wanted["heads"]  # each with keys of its own
        for name, count in wanted.items():
            if count > present[name]:
                raise UserError(f"{name} is {count}, but {self.model} has no more than {present[name]}")
        hidden, ffn, heads, kv_heads = wanted.values()
        group = old.queries // old.keys_values
        if heads % kv_heads or heads // kv_heads > group:
            raise UserError(
                f"{heads} heads for {kv_heads} kv_heads; {self.model} has groups of {group}: keep as many or fewer"
            )
        if hidden % heads:  # transformers refuses such a config
            raise UserError(f"hidden is {hidden}, which is no multiple of {heads} heads")
        if config.model_type in anatomy.HEADS_FILL_HIDDEN and hidden != heads * old.size:
            raise UserError(
                f"hidden is {hidden} with {heads} heads; {self.model} is a {config.model_type}, whose heads fill the "
                f"hidden size, {old.size} channels each: hidden {heads * old.size} goes with {heads} heads"
            )
        anatomy.resize(config, hidden, ffn, Heads(heads, kv_heads, old.size))
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

        def hands_on(norm: anatomy.Scale) -> Callable[..., None]:
            def see(_: nn.Module, inputs: tuple[Tensor], a_NTD: Tensor) -> None:
                x_NTD = inputs[0].float()
                squares_NTD = (x_NTD - x_NTD.mean(-1, keepdim=True) if norm.centred else x_NTD).square()
                share_NTD = squares_NTD / squares_NTD.mean(-1, keepdim=True).clamp_min(1e-30)
                add(norm.name, a_NTD)
                energy_D = share_NTD.mean(1).sum(0) / len(rows_NT)
                sums_D[f"{norm.name}.energy"] = sums_D[f"{norm.name}.energy"] + energy_D

            return see

        heads = anatomy.heads(model.config).queries
        with ExitStack() as hooks:
            for axis, name in anatomy.reading(model).items():
                hook = reads(name, heads if axis.space == "mixed" else 0)
                hooks.enter_context(model.get_submodule(name).register_forward_pre_hook(hook))
            for norm in anatomy.scales(model):
                hooks.enter_context(norm.module.register_forward_hook(hands_on(norm)))
            calibrate.run(model, rows_NT)
        return {name: total if name.endswith(".energy") else total.sqrt() for name, total in sums_D.items()}


def best(score_D: Any, count: int) -> Tensor:
    """The places of the `count` largest, in their old order; of equals the first."""
    return score_D.argsort(descending=True, stable=True)[:count].sort().values


def chosen(model: "PreTrainedModel", config: "PreTrainedConfig", scores_D: Mapping[str, Tensor]) -> dict[Axis, Tensor]:
    """What stays of every block: feed-forward channels, and the channels of heads, as many as the config says."""
    places: dict[Axis, Tensor] = {}
    for axis, name in anatomy.reading(model).items():
        if axis.space == "ffn":
            places[axis] = best(scores_D[name], anatomy.ffn(config))
        else:
            own = chosen_heads(scores_D[name], anatomy.heads(model.config), anatomy.heads(config))
            places |= {Axis(space, axis.block): channels for space, channels in own.items()}
    return places


def chosen_heads(score_D: Tensor, old: Heads, new: Heads) -> dict[Space, Tensor]:
    """What stays of queries and of the values they mix, and of keys and values; G queries share a key."""
    score_HG = score_D.view(old.keys_values, -1)
    groups = best(score_HG.sum(1), new.keys_values)
    count = new.queries // new.keys_values
    heads = torch.cat([group * score_HG.shape[1] + best(score_HG[group], count) for group in groups])
    queries, keys, triples = (
        (numbers[:, None] * size + torch.arange(size, device=heads.device)).flatten()
        for numbers, size in ((heads, new.size), (groups, new.size), (heads, 3 * new.size))
    )
    return {"queries": queries, "mixed": queries, "keys": keys, "values": keys, "triples": triples}
