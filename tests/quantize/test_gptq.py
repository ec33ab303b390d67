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
    nearest = rtn.quantize(structured(model_folder), None, rtn.Params(method="rtn", **P, bits=bits))
    solved = gptq.quantize(structured(model_folder), rows, gptq.Params(method="gptq", **P, bits=bits))
    layer, model = [], []
    for net in (nearest, solved):
        layer.append((net.get_submodule(FIRST)(x_MI) - outputs_MO).square().mean())
        model.append((net(rows).logits - logits_NTV).square().mean())
    assert layer[1] < 0.4 * layer[0] and model[1] < 0.7 * model[0]


@torch.no_grad()
def test_follows_algorithm_1(model_folder, rows):
    dense = structured(model_folder)
    weight_OI, x_MI = dense.get_submodule(FIRST).weight[:8].clone().double(), inputs(dense, rows).double()
    p = gptq.Params(method="gptq", **P, act_order=False)
    net = gptq.quantize(structured(model_folder), rows, p).get_submodule(FIRST)

    hessian_II = 2 * x_MI.T @ x_MI / len(x_MI)
    hessian_II += 0.01 * hessian_II.diagonal().mean() * torch.eye(256)
    upper_II = torch.linalg.cholesky(torch.linalg.inv(hessian_II), upper=True)
    for j in range(256):
        step_O, zero_O = net.weight_scale[:8, j // 128].double(), net.weight_zero_point[:8, j // 128].double()
        rounded_O = ((weight_OI[:, j] / step_O + zero_O).round().clamp(-8, 7) - zero_O) * step_O
        error_O = (weight_OI[:, j] - rounded_O) / upper_II[j, j]
        for k in range(j + 1, 256):
            weight_OI[:, k] -= error_O * upper_II[j, k]
        weight_OI[:, j] = rounded_O
    same_OI = (net.weight[:8] - weight_OI.float()).abs() < 1e-4
    assert same_OI.float().mean() > 0.98  # 32-bit floats tip near ties the other way, and what follows makes up for it


def test_calibration_and_groups_are_checked_before_any_work(tiny, rows):
    with pytest.raises(UserError, match="q_proj has 64 inputs; group_size 128 needs a multiple of 128"):
        gptq.quantize(tiny, rows, gptq.Params(method="gptq", **P))
    with pytest.raises(ValueError, match="damping"):
        gptq.Params(method="gptq", **P, damping=0)
