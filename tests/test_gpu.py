"""On an accelerator every loss, pruning and rounding is what it is on the CPU: `pytest -m gpu tests/test_gpu.py`.

Without one these are skipped; all other tests look at none (tests/conftest.py), so that they say the same everywhere.
"""

import copy

import pytest
import torch

from benchmarks._families import FAMILIES, LENGTHS, make, packed_batch
from stages.lib.frame import params
from stages.lib.nets import losses, packed
from stages.lib.runtimes.transformers import Transformers
from stages.lib.store import models
from stages.lib.training import loop
from stages.lib.training.config import Training
from stages.prune.parts.given import Given
from stages.quantize.parts import compressed
from tests.lib import test_distributed

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator is here")]
PARENTS = {"model": "pretrain/base", "tokens": "tokenize/bpe"}
TRAINING = {"steps": 4, "batch_size": 2, "precision": "float32", "lr": 0.01}
NEEDS = {  # what a pruning wants to know beyond its parents
    "depth": {"layers": 1},
    "lottery": {"sparsity": 0.5, "rounds": 2, "training": TRAINING},
    "spectral_width": {"multiple": 4},
    "spectral": {},
    "vocabulary": {"size": 400},
    "width": {"hidden": 48, "ffn": 96, "heads": 2, "kv_heads": 1},
}


@pytest.fixture(autouse=True)
def exact():
    """32 bits are 32 bits: no TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def there(part):
    return loop.to_device(part, torch.device("cuda"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_same_loss_and_gradients(family, tokenizer):
    batch = packed_batch(LENGTHS)
    here = make(family, tokenizer)  # without dropout
    twin = copy.deepcopy(here).cuda()
    values = [packed.loss(model, part) for model, part in ((here, batch), (twin, there(batch)))]
    for value in values:
        value.backward()
    assert values[1].item() == pytest.approx(values[0].item(), abs=1e-3)
    norms = [torch.stack([w.grad.norm().cpu() for w in m.parameters() if w.grad is not None]) for m in (here, twin)]
    torch.testing.assert_close(norms[1], norms[0], atol=1e-3, rtol=0.02)


def train(start, device, rows, p, folder, kill=None):
    """The losses of the steps; at part `kill` as if the machine were switched off."""
    net, curve = copy.deepcopy(start).to(device), []

    def batch(index):
        if index == kill:
            raise KeyboardInterrupt
        return rows[2 * index : 2 * index + 2]

    def loss(ids):
        return losses.next_token(net(input_ids=ids, use_cache=False).logits, ids)

    loop.fit(net, batch, loss, p, curve, folder)
    return [point["loss"] for point in curve]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("fake_quantize", [None, {"weights": "ternary"}])
def test_training_goes_the_same_way_and_goes_on_after_a_kill(optimizer, fake_quantize, tiny, rows, tmp_path):
    more = {"optimizer": optimizer, "fake_quantize": fake_quantize, "steps": 6}
    p = Training.model_validate(TRAINING | more).model_copy(update={"checkpoint_seconds": 0})
    here, there = (train(tiny, device, rows, p, tmp_path / device) for device in ("cpu", "cuda"))
    assert there == pytest.approx(here, abs=5e-3)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, "cuda", rows, p, tmp_path / "killed", kill=3)
    assert train(tiny, "cuda", rows, p, tmp_path / "killed") == pytest.approx(there, abs=1e-4)


@pytest.mark.parametrize("name", params.techniques("prune"))
def test_every_pruning_finds_the_same_network(name, tiny, tokenizer, rows, tmp_path):
    technique = params.technique("prune", "x", {"method": name, **PARENTS} | NEEDS.get(name, {"sparsity": 0.5}))
    logits = []
    for device in ("cpu", "cuda"):
        given = Given(rows, rows.numpy(), tokenizer, tmp_path / device / "scores", tmp_path / device / "trainings")
        net = technique.prune(copy.deepcopy(tiny).to(device), given)
        assert {weight.device.type for weight in net.parameters()} == {device}
        models.save(net, given.tokenizer, tmp_path / device / "model")
        with torch.no_grad():
            logits.append(models.load(tmp_path / device / "model")(rows[:4].cuda() % 300).logits)
    difference = (logits[1] - logits[0]).abs().mean() / logits[0].std()  # a tie may go the other way
    assert difference < (0.15 if name == "lottery" else 0.05)  # that one trains in between: 0.08 on an H200


@pytest.mark.parametrize("name", params.techniques("quantize"))
def test_every_quantization_rounds_alike(name, model_folder, ternary_folder, texts, tokenizer, tmp_path):
    technique = params.technique("quantize", "x", {"method": name, **PARENTS})
    parent = ternary_folder if name == "bitnet" else model_folder
    ids, logits = torch.tensor([tokenizer.encode(text)[:64] for text in texts[:4]]), []
    for device in ("cpu", "cuda"):
        net = technique.quantize(compressed.unfused(models.load(parent).to(device)), ids)
        compressed.round_rest(net, torch.float16)
        inside = losses.evaluate(net, ids)
        models.save(compressed.pack(net, torch.float16), tokenizer, tmp_path / device)
        reloaded = models.load(tmp_path / device)
        assert losses.evaluate(reloaded, ids) == pytest.approx(inside, abs=1e-4)
        with torch.no_grad():
            logits.append(reloaded(ids.cuda()).logits)
    assert (logits[1] - logits[0]).abs().mean() / logits[0].std() < 0.05


def test_answers_are_those_of_the_cpu(model_folder, tokenizer, texts):
    prompts = [tokenizer.encode(text)[: 5 + 3 * i] for i, text in enumerate(texts[:6])]
    there, here = Transformers(model_folder), Transformers(model_folder)
    here.model.cpu()
    assert there.model.device.type == "cuda"
    assert there.generate(prompts, 8) == here.generate(prompts, 8)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two accelerators are not here")
def test_two_accelerators_end_like_one(tmp_path):
    for name, (weights, curve) in test_distributed.main(tmp_path).items():
        if name in test_distributed.CASES:
            wanted, alone = test_distributed.expected(test_distributed.CASES[name], tmp_path)
            near = {"atol": max(1e-3, test_distributed.LOOSE.get(name, 0.0)), "rtol": 0}
            torch.testing.assert_close([row["loss"] for row in curve], [row["loss"] for row in alone], **near)
            torch.testing.assert_close(weights, wanted, **near)
