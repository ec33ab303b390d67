"""AWQ against plain rounding with the same format, and the traps of the library that computes it."""

import pytest
import torch

from stages.lib.frame.errors import UserError
from stages.lib.nets import calibrate
from stages.lib.store import models
from stages.quantize import awq
from stages.quantize.parts import compressed

P = {"method": "awq", "model": "pretrain/base", "tokens": "tokenize/bpe"}


def with_outliers(folder):
    """A few channels meet inputs thirty times as large, as in real language models."""
    net = models.load(folder)
    for layer in net.model.layers:
        layer.input_layernorm.weight.data[:6] *= 30
        layer.post_attention_layernorm.weight.data[:6] *= 30
    return net


def plain_rounding(net, group_size):
    from llmcompressor.modifiers.quantization import QuantizationModifier

    weights = awq.AWQ(**P, group_size=group_size).integers(4)
    return compressed.oneshot(net, [QuantizationModifier(**compressed.scheme(net, weights))])


@torch.no_grad()
def test_loses_less_than_plain_rounding_on_its_calibration_rows(model_folder, rows):
    dense = with_outliers(model_folder)(rows).logits
    rounded = plain_rounding(with_outliers(model_folder), 128)(rows).logits
    scaled = awq.AWQ(**P, grid=10).quantize(with_outliers(model_folder), rows)(rows).logits
    assert (scaled - dense).square().mean() < 0.8 * (rounded - dense).square().mean()


@torch.no_grad()
def test_clipping_takes_the_share_of_least_error_by_hand(model_folder):
    layer = calibrate.linears(plain_rounding(models.load(model_folder), 128))["model.layers.0.mlp.down_proj"]
    x_MGS = torch.randn(40, 4, 128, generator=torch.Generator().manual_seed(0)) ** 3
    awq.clip(layer, torch.einsum("mgs,mgt->gst", x_MGS, x_MGS))
    shares = set()
    for output in range(3):
        for group in range(4):
            w, x = layer.weight.view(-1, 4, 128)[output, group], x_MGS[:, group]
            errors = {}
            for share in awq.SHARES:
                largest = share * w.abs().max()
                low, high = max(w.min(), -largest), min(w.max(), largest)
                step = (high - low) / 15
                zero = (-8 - low / step).round().clamp(-8, 7)
                rounded = (((w / step).round() + zero).clamp(-8, 7) - zero) * step
                errors[share] = sum(float(each @ (rounded - w)) ** 2 for each in x), step, zero
            share = min(errors, key=lambda each: errors[each][0])
            torch.testing.assert_close(layer.weight_scale[output, group], errors[share][1])
            assert layer.weight_zero_point[output, group] == errors[share][2]
            shares.add(share)
    assert len(shares) > 2


@torch.no_grad()
@pytest.mark.parametrize("symmetric", [False, True])
def test_clipping_loses_less_but_leaves_queries_and_keys(model_folder, rows, symmetric):
    dense, p = with_outliers(model_folder)(rows).logits, {**P, "bits": 3, "grid": 4, "symmetric": symmetric}
    whole, clipped = (awq.AWQ(**p, clip=clip).quantize(with_outliers(model_folder), rows) for clip in (False, True))
    errors = [(net(rows).logits - dense).square().mean() for net in (whole, clipped)]
    assert errors[1] < 0.97 * errors[0]
    same = {
        name.rsplit(".", 1)[1]: torch.equal(layer.weight_scale, calibrate.linears(clipped)[name].weight_scale)
        for name, layer in calibrate.linears(whole).items()
    }
    assert [name for name in same if same[name]] == ["q_proj", "k_proj"]


@torch.no_grad()
@pytest.mark.parametrize(("bits", "group_size", "symmetric"), [(4, 32, False), (4, 128, True), (3, 128, False)])
def test_a_group_has_so_many_levels_evenly_spaced(model_folder, rows, tmp_path, bits, group_size, symmetric):
    p = awq.AWQ(**P, bits=bits, group_size=group_size, symmetric=symmetric, grid=4)
    net = p.quantize(models.load(model_folder), rows[:4])
    models.save(compressed.pack(net, torch.float32), models.load_tokenizer(model_folder), tmp_path / "packed")
    net = models.load(tmp_path / "packed")
    net(rows[:1])  # unpacks
    for name, layer in calibrate.linears(net).items():
        q_OGI = layer.weight.unflatten(1, (-1, group_size)) / layer.weight_scale[..., None]
        assert (q_OGI - q_OGI.round()).abs().max() < 1e-3, name
        assert (q_OGI.amax(-1) - q_OGI.amin(-1)).max().round() <= 2**bits - 1
        assert not symmetric or (q_OGI.round().min() >= -8 and q_OGI.round().max() <= 7)


def test_a_width_without_whole_groups_is_refused_before_any_work(tiny, rows):
    with pytest.raises(UserError, match="q_proj has 64 inputs; group_size 128 needs a multiple of 128"):
        awq.AWQ(**P).quantize(tiny, rows)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="pinning works where there is an accelerator")
def test_pinning_fails_without_an_accelerator_and_is_left_out():
    """The day the first half fails, `compressed.unpinned` can go."""
    from llmcompressor.pipelines.cache import IntermediatesCache

    cache = IntermediatesCache(None, None)
    cache.append({"x": torch.zeros(2)})
    with pytest.raises(RuntimeError, match="accelerator"):
        cache.pin_memory(0)
    with compressed.unpinned():
        cache.pin_memory(0)
    with pytest.raises(RuntimeError, match="accelerator"):
        cache.pin_memory(0)
