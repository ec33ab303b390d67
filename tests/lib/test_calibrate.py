"""Calibration hands every Linear the inputs it really gets, and nothing that belongs to the head."""

import pytest
import torch
from torch import nn

from stages.lib.frame.errors import UserError
from stages.lib.nets import calibrate


def test_linears_leave_out_the_tied_head(tiny):
    names = set(calibrate.linears(tiny))
    assert len(names) == 2 * 7 and "lm_head" not in names
    assert all(layer.weight is not tiny.get_input_embeddings().weight for layer in calibrate.linears(tiny).values())


def test_observed_inputs_explain_the_outputs(tiny, rows):
    """down_proj applied to what was observed is what the MLP gives; the batch size does not matter."""
    layer = tiny.model.layers[1].mlp
    seen, outputs = [], []
    handle = layer.register_forward_hook(lambda _, __, output: outputs.append(output.flatten(0, -2)))
    calibrate.observe(tiny, rows, {"down": layer.down_proj}, lambda _, x_MI: seen.append(x_MI), batch=5)
    handle.remove()
    assert [len(x_MI) for x_MI in seen] == [5 * 64, 5 * 64, 5 * 64, 64]
    torch.testing.assert_close(layer.down_proj(torch.cat(seen)), torch.cat(outputs))


def test_hooks_are_gone_afterwards_also_after_an_error(tiny, rows):
    def fail(name, x_MI):
        raise RuntimeError(name)

    with pytest.raises(RuntimeError):
        calibrate.observe(tiny, rows, calibrate.linears(tiny), fail)
    assert not any(layer._forward_pre_hooks for layer in calibrate.linears(tiny).values())


def test_blocks_in_turn_read_what_the_changed_blocks_before_them_write(tiny, rows):
    """As if the whole model had run anew for every block; a model without a list of blocks is one."""
    for block, observe in calibrate.in_turn(tiny, rows, batch=5):
        layers, kept, whole = calibrate.linears(block), [], []
        observe(layers, lambda name, x_MI, kept=kept: kept.append((name, x_MI)))
        calibrate.observe(tiny, rows, layers, lambda name, x_MI, whole=whole: whole.append((name, x_MI)), batch=5)
        assert [name for name, _ in kept] == [name for name, _ in whole] and len(kept) == 4 * 7
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(kept, whole, strict=True))
        block.mlp.up_proj.weight.data *= 2  # the next block reads what this now writes
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    seen = []
    for _, observe in calibrate.in_turn(plain, torch.ones(3, 2, 4)):
        observe(calibrate.linears(plain), lambda name, x_MI: seen.append((name, len(x_MI))))
    assert seen == [("0", 6), ("1", 6)]


def test_widths_that_do_not_divide_are_refused():
    calibrate.check_widths({"q": nn.Linear(8, 3)}, 4, "pattern 2of4")
    with pytest.raises(UserError, match="k has 6 inputs; pattern 2of4 needs a multiple of 4"):
        calibrate.check_widths({"q": nn.Linear(8, 3), "k": nn.Linear(6, 3)}, 4, "pattern 2of4")
    with pytest.raises(UserError, match="groups needs a multiple of 16: choose 2 or 4$"):
        calibrate.check_widths({"q": nn.Linear(8, 3), "k": nn.Linear(4, 3)}, 16, "groups", (2, 4, 8))


def test_a_quantized_model_is_refused(tiny):
    calibrate.require_dense(tiny, "prune.half")
    tiny.config.quantization_config = {"quant_method": "compressed-tensors"}
    with pytest.raises(UserError, match="prune.half: its parent is quantized already"):
        calibrate.require_dense(tiny, "prune.half")
