"""Width: keep the directions of the residual stream whose variance no noise explains. RMT-KD, 2025, arXiv:2509.15724;
the projection as in Ashkboos et al. 2024 (SliceGPT), arXiv:2401.15024, section 3, but one for the whole stream.

    S = X^T X / n,  edge = s^2 (1 + sqrt(D / n))^2,  Q = eigenvectors of S with eigenvalues above the edge

s^2 is fitted to the Marchenko-Pastur law; X are the stream's tokens as the norms hand them on. Every gain is folded
into the matrices that read behind its norm (so a tied head becomes a matrix of its own), then what reads the stream
becomes W Q, what writes it Q^T W, and the norms' gain sqrt(D / K): they now take a mean over K values instead of D.
With all directions in Q nothing changes. The paper then trains with 0.7 CE + 0.3 KL(old || new): that is `distill`,
method logits, its teacher this model's parent. More calibration tokens lower the edge, so that more directions stay.
Cost: one forward pass and an eigendecomposition. Shapes: N rows, T context, M tokens, D hidden, K kept.
"""

import copy
import math
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from stages.lib.frame import params
from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Calibration
from stages.lib.nets import anatomy, calibrate
from stages.lib.nets.anatomy import Axis, Part
from stages.prune import Pruning
from stages.prune.parts import marchenko_pastur

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.prune.parts.given import Given

HIDDEN = Axis("hidden")


class SpectralWidth(Pruning):
    method: Literal["spectral_width"]
    multiple: PositiveInt = 64  # the new width is rounded up to one that heads divide too
    calibration: Calibration = Calibration()

    @torch.no_grad()
    def prune(self, model: "PreTrainedModel", given: "Given") -> "PreTrainedModel":
        if not anatomy.is_plain(model):
            raise self.refusal(model, f"narrow: {params.names(anatomy.PLAIN)}")
        hidden, tokens = model.config.hidden_size, given.rows.numel()
        if tokens < hidden:
            raise UserError(f"{tokens} calibration tokens can't tell {hidden} directions apart; give more rows")
        fold(model)
        values_D, vectors_DD = torch.linalg.eigh(covariance(model, given.rows))  # ascending
        signal = int((values_D > marchenko_pastur.edge(values_D, tokens)).sum())
        step = math.lcm(self.multiple, anatomy.heads(model.config).queries)  # transformers refuses other widths
        kept = math.ceil(max(1, signal) / step) * step
        if kept >= hidden:
            found = f"{signal} of {self.model}'s {hidden} directions are above the noise"
            raise UserError(f"{found}; in steps of {step} all stay: take a smaller multiple or fewer calibration rows")
        return project(model, vectors_DD[:, -kept:])


@torch.no_grad()
def fold(model: "PreTrainedModel") -> None:
    """Every norm's gain into the matrices that read behind it: the same function, all gains one."""
    head: Any = model.get_output_embeddings()
    if model.config.tie_word_embeddings:
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    for norm in anatomy.norms(model):
        for reader in norm.readers:
            reader.weight *= norm.gain
        norm.gain.fill_(1)


def covariance(model: "PreTrainedModel", rows_NT: Tensor) -> Tensor:
    """Mean of x x^T over all tokens and norms, (D, D); uncentred, for what is projected away is lost whole."""
    total_DD = torch.zeros(2 * (model.config.hidden_size,), dtype=torch.float64, device=model.device)

    def add(_module: nn.Module, _inputs: tuple[Tensor], x_NTD: Tensor) -> None:
        x_MD = x_NTD.flatten(0, 1).double()
        total_DD.addmm_(x_MD.T, x_MD)

    norms = anatomy.norms(model)
    with ExitStack() as hooks:
        for norm in norms:
            hooks.enter_context(norm.module.register_forward_hook(add))
        calibrate.run(model, rows_NT)
    return total_DD / (rows_NT.numel() * len(norms))


def project(model: "PreTrainedModel", basis_DK: Tensor) -> "PreTrainedModel":
    """The same model on the stream x Q; its gains must be folded."""
    hidden, kept = basis_DK.shape
    config = copy.deepcopy(model.config)
    config.hidden_size, config.head_dim = kept, anatomy.heads(model.config).size
    config.rms_norm_eps *= hidden / kept  # under the root it meets the mean, which grows as the width falls
    small = type(model)(config).to(model.device, model.dtype).eval()  # pyright: ignore[reportArgumentType]
    basis, axes, weights = basis_DK.to(model.device, model.dtype), anatomy.axes(model), model.state_dict()
    gains = {f"{norm.name}.weight": weights[f"{norm.name}.weight"] for norm in anatomy.norms(model)}
    changed = {name: change(weight, axes[name], basis) for name, weight in weights.items()}
    changed |= {name: gain.new_full((kept,), math.sqrt(hidden / kept)) for name, gain in gains.items()}
    small.load_state_dict(changed)
    small.generation_config = model.generation_config
    return small


def change(weight: Tensor, axes: tuple[tuple[Part, ...], ...], basis_DK: Tensor) -> Tensor:
    """What a matrix or bias reads from the stream or writes to it, in the basis."""
    if axes[0][0].axis == HIDDEN:
        return basis_DK.T @ weight
    return weight @ basis_DK if axes[-1][0].axis == HIDDEN else weight
