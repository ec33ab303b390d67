"""Packing of ternary weights: the bytes unpacked by hand, the bits counted by hand, and what is refused."""

import pytest
import torch
from safetensors.torch import load_file

from stages.lib.frame.errors import UserError
from stages.lib.nets import rounding
from stages.lib.store import models
from stages.quantize import __main__ as stage
from stages.quantize import bitnet
from stages.quantize.parts import compressed

TECHNIQUE = bitnet.BitNet(method="bitnet", model="pretrain/base", tokens="tokenize/bpe")


@pytest.fixture(scope="module")
def packed(ternary_folder, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bitnet") / "model"
    net = TECHNIQUE.quantize(models.load(ternary_folder), torch.empty(0, 0))
    compressed.round_rest(net, torch.float16)
    models.save(compressed.pack(net, torch.float16), tokenizer, folder)
    return folder


def test_every_weight_is_in_the_file_exactly(ternary_folder, packed):
    """Sixteen weights in 32 bits, the first lowest, each two more than it says."""
    tensors, dense = load_file(packed / "model.safetensors"), models.load(ternary_folder)
    for name in ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"):
        packed_OW, scale_O1 = tensors[f"{name}.weight_packed"], tensors[f"{name}.weight_scale"]
        assert (packed_OW.dtype, scale_O1.dtype) == (torch.int32, torch.float16)
        q_OI = torch.stack([(packed_OW >> 2 * place) & 3 for place in range(16)], dim=-1).flatten(1) - 2
        assert set(q_OI.unique().tolist()) == {-1, 0, 1}
        assert torch.equal(q_OI * scale_O1.float(), dense.get_submodule(name).weight), name


def test_bits_are_those_of_the_file(ternary_folder, packed):
    """Two a weight, a 16-bit scale a row, the shape in 16 bytes; hidden 256, FFN 512, two layers."""
    rows = 2 * (256 + 128 + 128 + 256 + 512 + 512 + 256)
    weights = 2 * (256 * (256 + 128 + 128 + 256) + 3 * 256 * 512)
    seen = stage.size(models.load(ternary_folder), packed)
    assert seen["bits_per_weight"] == pytest.approx((2 * weights + 16 * rows + 14 * 16 * 8) / weights)
    assert seen["bits_per_weight"] < 2.06


def test_dense_weights_are_refused(model_folder):
    with pytest.raises(UserError, match="bitnet: model.layers.0.self_attn.q_proj has .* different weights, not -s, 0"):
        TECHNIQUE.quantize(models.load(model_folder), torch.empty(0, 0))
    assert rounding.scale_of(torch.zeros(2, 2)) == 0  # nothing but zeros is ternary too
