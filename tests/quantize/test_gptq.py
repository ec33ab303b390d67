"""GPTQ against its algorithm in loops, and against plain rounding in what it is for: the layer's output."""

import pytest
import torch

from stages.lib.frame.errors import UserError
from stages.lib.nets import calibrate
from stages.lib.store import models
from stages.quantize import gptq, rtn

P = {"model": "pretrain/base", "tokens": "tokenize/bpe"}
FIRST = "model.layers.0.self_attn.q_proj"  # its inputs do not depend on what was rounded before it


def structured(folder):
    """Inputs as language models have them: few directions carry most, some channels are ten times as large."""
    net = models.load(folder)
    with torch.no_grad():
        basis = torch.randn(24, 256, generator=torch.Generator().manual_seed(1))
        vectors = net.model.embed_tokens.weight
        vectors.copy_(vectors[:, :24] @ basis + 0.1 * vectors)
        net.model.layers[0].input_layernorm.weight[:8] *= 10
    return net


def inputs(net, rows):
    seen = []
    calibrate.observe(net, rows, {FIRST: net.get_submodule(FIRST)}, lambda _, x_MI: seen.append(x_MI))
    return torch.cat(seen)


@torch.no_grad()
@pytest.mark.parametrize("bits", [3, 4])
def test_output_error_is_far_below_plain_rounding(model_folder, rows, bits):
    dense = structured(model_folder)
    x_MI, logits_NTV = inputs(dense, rows), dense(rows).logits
    outputs_MO = dense.get_submodule(FIRST)(x_MI)
    nearest = rtn.RTN(method="rtn", **P, bits=bits).quantize(structured(model_folder), torch.empty(0, 0))
    solved = gptq.GPTQ(method="gptq", **P, bits=bits).quantize(structured(model_folder), rows)
    layer, model = [], []
    for net in (nearest, solved):
        layer.append((net.get_submodule(FIRST)(x_MI) - outputs_MO).square().mean())
        model.append((net(rows).logits - logits_NTV).square().mean())
    assert layer[1] < 0.4 * layer[0] and model[1] < 0.7 * model[0]


@torch.no_grad()
@pytest.mark.parametrize(("damping", "act_order"), [(0.01, False), (0.3, False), (0.01, True)])
def test_follows_algorithm_1(model_folder, rows, damping, act_order):
    """With `act_order` the columns go by H's diagonal, each in the group it had."""
    dense = structured(model_folder)
    weight_OI, x_MI = dense.get_submodule(FIRST).weight[:8].clone().double(), inputs(dense, rows).double()
    technique = gptq.GPTQ(method="gptq", **P, damping=damping, act_order=act_order)
    layer = technique.quantize(structured(model_folder), rows).get_submodule(FIRST)

    hessian_II = 2 * x_MI.T @ x_MI / len(x_MI)
    order_I = hessian_II.diagonal().argsort(descending=True) if act_order else torch.arange(256)
    hessian_II += damping * hessian_II.diagonal().mean() * torch.eye(256)
    upper_II = torch.linalg.cholesky(torch.linalg.inv(hessian_II[order_I][:, order_I]), upper=True)
    for n, j in enumerate(order_I.tolist()):
        step_O, zero_O = layer.weight_scale[:8, j // 128].double(), layer.weight_zero_point[:8, j // 128].double()
        rounded_O = ((weight_OI[:, j] / step_O + zero_O).round().clamp(-8, 7) - zero_O) * step_O
        error_O = (weight_OI[:, j] - rounded_O) / upper_II[n, n]
        for m in range(n + 1, 256):
            weight_OI[:, order_I[m]] -= error_O * upper_II[n, m]
        weight_OI[:, j] = rounded_O
    same_OI = (layer.weight[:8] - weight_OI.float()).abs() < 1e-4
    assert same_OI.float().mean() > 0.98  # 32-bit floats tip near ties the other way, and what follows makes up for it


def test_calibration_and_groups_are_checked_before_any_work(tiny, rows):
    with pytest.raises(UserError, match="q_proj has 64 inputs; group_size 128 needs a multiple of 128"):
        gptq.GPTQ(method="gptq", **P).quantize(tiny, rows)
    with pytest.raises(ValueError, match="damping"):
        gptq.GPTQ(method="gptq", **P, damping=0)


@torch.no_grad()
def test_another_damping_and_another_order_are_other_weights(model_folder, rows):
    """As few as three of a hundred; a setting that was lost on the way would change none."""
    variants = ({}, {"damping": 0.3}, {"act_order": False})
    usual, damped, unordered = (
        gptq.GPTQ(method="gptq", **P, **each).quantize(structured(model_folder), rows).get_submodule(FIRST).weight
        for each in variants
    )
    assert (usual != damped).float().mean() > 0.03 and (usual != unordered).float().mean() > 0.03
