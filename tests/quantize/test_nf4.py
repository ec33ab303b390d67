"""NF4 against the formula: sixteen codes a block, the nearest one, and scales that are quantized once more."""

import pytest
import torch

from stages.lib.frame.errors import UserError
from stages.lib.store import models
from stages.quantize import __main__ as stage
from stages.quantize import nf4
from stages.quantize.parts import compressed

P = {"method": "nf4", "model": "pretrain/base", "tokens": "tokenize/bpe"}
NAME = "model.layers.1.mlp.down_proj"
CODES = [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407]
CODES += [0.5626, 0.7230, 1.0]  # the paper's appendix E


def dequantized(net):
    from bitsandbytes.functional import dequantize_4bit

    packed = net.get_submodule(NAME).weight
    return dequantize_4bit(packed.data, packed.quant_state)


@torch.no_grad()
@pytest.mark.parametrize("double", [False, True])
def test_every_weight_is_the_nearest_code_of_its_block(model_folder, double):
    weight_BN = models.load(model_folder).get_submodule(NAME).weight.reshape(-1, 64)
    net = nf4.NF4(**P, double=double).quantize(models.load(model_folder), torch.empty(0, 0))
    scale_B1, codes_C = weight_BN.abs().amax(1, keepdim=True), torch.tensor(CODES)
    distance_BNC = (dequantized(net).reshape(-1, 64) / scale_B1)[..., None] - codes_C
    assert distance_BNC.abs().amin(-1).max() < (2e-2 if double else 1e-4)  # the scales are rounded too
    chosen_BN, ideal_BNC = codes_C[distance_BNC.abs().argmin(-1)], (weight_BN / scale_B1)[..., None] - codes_C
    assert ((chosen_BN - weight_BN / scale_B1).abs() <= ideal_BNC.abs().amin(-1) + 1e-4).all()


@pytest.mark.parametrize(("double", "bits"), [(False, 4 + 32 / 64), (True, 4 + 8 / 64 + 32 / 64 / 256)])
def test_bits_are_those_of_codes_scales_and_tables(model_folder, tokenizer, tmp_path, double, bits):
    dense = models.load(model_folder)
    net = nf4.NF4(**P, double=double).quantize(models.load(model_folder), torch.empty(0, 0))
    models.save(compressed.pack(net, torch.float16), tokenizer, tmp_path / "model")
    weights = 2 * (256 * (256 + 128 + 128 + 256) + 3 * 256 * 512)
    tables = 14 * (16 * 4 + (256 * 4 if double else 0) + 170)  # codes of weights and scales, bitsandbytes' own notes
    stored = stage.size(dense, tmp_path / "model")["bits_per_weight"]
    assert stored == pytest.approx(bits + 8 * tables / weights, abs=0.01)


def test_rows_without_whole_blocks_are_refused(tokenizer, llama):
    with pytest.raises(UserError, match=r"has 48 inputs; nf4, block 64, needs a multiple of 64"):
        nf4.NF4(**P).quantize(llama(len(tokenizer), hidden=48), torch.empty(0, 0))
