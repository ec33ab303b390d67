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
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Calibration
from stages.lib.nets import calibrate
from stages.prune import Pruning
from stages.prune.parts import marchenko_pastur

KNOWN = ("llama", "mistral", "qwen2", "qwen3")  # two norms a block, each read by these and nothing else:
READERS = {"input_layernorm": ("q_proj", "k_proj", "v_proj"), "post_attention_layernorm": ("gate_proj", "up_proj")}
WRITERS = ("o_proj", "down_proj")


class Params(Pruning):
    method: Literal["spectral_width"]
    multiple: PositiveInt = 64  # the new width is rounded up to one that heads divide too
    calibration: Calibration = Calibration()


@torch.no_grad()
def prune(model: Any, rows_NT: Tensor, p: Params) -> nn.Module:
    hidden = model.config.hidden_size
    if model.config.model_type not in KNOWN:
        raise UserError(f"{p.model} is a {model.config.model_type}; spectral_width can narrow: {', '.join(KNOWN)}")
    if rows_NT.numel() < hidden:
        raise UserError(f"{rows_NT.numel()} calibration tokens can't tell {hidden} directions apart; give more rows")
    fold(model)
    values_D, vectors_DD = torch.linalg.eigh(covariance(model, rows_NT))  # ascending
    signal = int((values_D > marchenko_pastur.edge(values_D, rows_NT.numel())).sum())
    step = math.lcm(p.multiple, model.config.num_attention_heads)  # transformers refuses other widths
    kept = math.ceil(max(1, signal) / step) * step
    if kept >= hidden:
        said = f"{signal} of {p.model}'s {hidden} directions are above the noise"
        raise UserError(f"{said}; in steps of {step} all stay: take a smaller multiple or fewer calibration rows")
    return project(model, vectors_DD[:, -kept:])


@torch.no_grad()
def fold(model: Any) -> None:
    """Every norm's gain into the matrices that read behind it: the same function, all gains one."""
    if model.config.tie_word_embeddings:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    pairs = [(model.get_decoder().norm, [model.lm_head])]
    for block in calibrate.blocks(model):
        pairs += [(getattr(block, norm), named(block, readers)) for norm, readers in READERS.items()]
    for norm, readers in pairs:
        for reader in readers:
            reader.weight *= norm.weight
        norm.weight.fill_(1)


def named(block: nn.Module, names: tuple[str, ...]) -> list[Any]:
    return [layer for name, layer in calibrate.linears(block).items() if name.rsplit(".", 1)[-1] in names]


def covariance(model: Any, rows_NT: Tensor) -> Tensor:
    """Mean of x x^T over all tokens and norms, (D, D); uncentred, for what is projected away is lost whole."""
    total_DD = torch.zeros(2 * (model.config.hidden_size,), dtype=torch.float64, device=model.device)

    def add(_module: Any, _inputs: Any, x_NTD: Tensor) -> None:
        x_MD = x_NTD.flatten(0, 1).double()
        total_DD.addmm_(x_MD.T, x_MD)

    norms = [getattr(block, norm) for block in calibrate.blocks(model) for norm in READERS] + [model.get_decoder().norm]
    with ExitStack() as hooks:
        for norm in norms:
            hooks.enter_context(norm.register_forward_hook(add))
        calibrate.run(model, rows_NT)
    return total_DD / (rows_NT.numel() * len(norms))


def project(model: Any, basis_DK: Tensor) -> Any:
    """The same model on the stream x Q; its gains must be folded."""
    hidden, kept = basis_DK.shape
    config, first = copy.deepcopy(model.config), calibrate.blocks(model)[0]
    config.hidden_size, config.head_dim = kept, first.self_attn.head_dim  # pyright: ignore[reportAttributeAccessIssue]
    config.rms_norm_eps *= hidden / kept  # under the root it meets the mean, which grows as the width falls
    small = type(model)(config).to(model.device, model.dtype).eval()
    basis = basis_DK.to(model.device, model.dtype)
    small.load_state_dict({name: change(name, w, basis) for name, w in model.state_dict().items()})
    small.generation_config = model.generation_config
    return small


def change(name: str, weight: Tensor, basis_DK: Tensor) -> Tensor:
    layer, kind = name.split(".")[-2:]
    hidden, kept = basis_DK.shape
    if layer in WRITERS:
        return basis_DK.T @ weight  # bias too
    if layer in ("embed_tokens", "lm_head", *sum(READERS.values(), ())) and kind == "weight":
        return weight @ basis_DK
    if layer in ("norm", *READERS):
        return weight.new_full((kept,), math.sqrt(hidden / kept))
    return weight
