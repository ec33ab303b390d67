"""int8 against its formula, computed from the dense weights."""

import pytest
import torch

from stages.lib.nets import calibrate
from stages.lib.store import models
from stages.quantize import int8
from stages.quantize.parts import compressed

P = {"method": "int8", "model": "pretrain/base", "tokens": "tokenize/bpe"}


def test_error_is_at_most_half_a_step_on_a_grid_of_integers(model_folder, tmp_path):
    dense = models.load(model_folder)
    net = compressed.pack(int8.Int8(**P).quantize(models.load(model_folder), torch.empty(0, 0)), torch.float32)
    net.save_pretrained(tmp_path)
    reloaded = calibrate.linears(decompressed(models.load(tmp_path)))
    for name, layer in calibrate.linears(dense).items():
        step_O1 = layer.weight.abs().amax(1, keepdim=True) / 127.5
        q_OI = reloaded[name].weight / step_O1
        assert (q_OI - q_OI.round()).abs().max() < 1e-3, name
        assert q_OI.round().min() >= -128 and q_OI.round().max() <= 127
        assert ((reloaded[name].weight - layer.weight).abs() <= step_O1 * 0.5001).all(), name


def decompressed(net):
    """A packed model unpacks itself at its first forward pass."""
    net(torch.zeros(1, 1, dtype=torch.long))
    return net


@torch.no_grad()
def test_activations_are_rounded_token_by_token(model_folder):
    dense = models.load(model_folder).model.layers[0].mlp.up_proj.weight
    net = int8.Int8(**P, activations=True).quantize(models.load(model_folder), torch.empty(0, 0))
    x_BTI = torch.randn(2, 3, dense.shape[1], generator=torch.Generator().manual_seed(0))
    step_O1, step_BT1 = dense.abs().amax(1, keepdim=True) / 127.5, x_BTI.abs().amax(-1, keepdim=True) / 127.5
    w_OI = (dense / step_O1).round().clamp(-128, 127) * step_O1
    rounded_BTI = (x_BTI / step_BT1).round().clamp(-128, 127) * step_BT1
    torch.testing.assert_close(net.model.layers[0].mlp.up_proj(x_BTI), rounded_BTI @ w_OI.T, atol=1e-5, rtol=1e-4)


def test_calibration_rows_are_refused():
    with pytest.raises(ValueError, match="calibration"):
        int8.Int8(**P, calibration={"rows": 8})
