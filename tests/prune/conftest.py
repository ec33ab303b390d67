"""What the stage hands a technique, and networks of other kinds than a llama."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stages.prune.parts.given import Given


@pytest.fixture
def given(tmp_path, tokenizer) -> Callable[..., Given]:
    """given(rows, name="given"): as the stage makes it; under the same name scores and trainings are found again."""

    def make(rows: Tensor, name: str = "given") -> Given:
        folder = tmp_path / name
        return Given(rows, rows.numpy(), tokenizer, folder / "scores", folder / "trainings")

    return make


@pytest.fixture
def none(given) -> Given:
    """For techniques that look at no data."""
    return given(torch.empty(0, 0, dtype=torch.int64), "none")
