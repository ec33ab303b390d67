"""What the tests of preferences and rewards share."""

import copy

import pytest
import torch

from stages.lib.nets import packed
from stages.lib.text import packing
from stages.lib.training import loop
from stages.lib.training.config import Training
from tests.conftest import build_llama


@pytest.fixture
def moved(tiny):
    """Another model than the reference, a little away from it."""
    policy = copy.deepcopy(tiny)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.02 * torch.randn_like(weight)
    return policy


@pytest.fixture(scope="session")
def unsure(tokenizer, tmp_path_factory):
    """A model that answers "Say n" by n or by n + 1, so that rewards have something to choose from."""
    model = build_llama(len(tokenizer))
    rows = [{"id": str(n), "prompt": f"Say {n}", "solution": f"#### {n + more}"} for more in (0, 1) for n in range(8)]
    batch = packing.batches(tokenizer, rows, 64, 8, 0)
    p = Training.model_validate({"steps": 120, "batch_size": 8, "lr": 5e-3, "precision": "float32"})
    loop.fit(model, batch, lambda part: packed.loss(model, part), p, [], tmp_path_factory.mktemp("unsure") / "none")
    return model
