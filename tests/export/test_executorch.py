"""The ExecuTorch export against transformers."""

from importlib.util import find_spec

import pytest
import torch

from stages.export import executorch
from stages.lib.runtimes.open import open_runtime
from stages.lib.store import dense, models

PARENTS = {"model": "align/dpo", "tokens": "tokenize/bpe"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("executorch"), reason="the extra `executorch` is not installed"),
]


@pytest.fixture(scope="module")
def folder(source_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("executorch")
    technique, tokenizer = executorch.ExecuTorch(method="executorch", **PARENTS), models.load_tokenizer(source_folder)
    technique.write(dense.load(source_folder), tokenizer, folder, torch.empty(0, 0))
    return folder


def test_it_says_what_transformers_says(folder, source_folder, rows):
    """At once and token by token, from one token to the whole context, and no call remembers the one before."""
    ours, theirs = (open_runtime(each) for each in (folder, source_folder))
    longest = [int(i) for i in rows[:4].flatten()]  # 256
    for ids in (longest, rows[1, :20].tolist(), longest[:1]):
        assert ours.logits(ids) == pytest.approx(theirs.logits(ids), abs=0.05)
    prompts = [row[: 3 + 7 * i] for i, row in enumerate(rows[:5].tolist())]
    for prompt, answer in zip(prompts, ours.generate(prompts, 24), strict=True):
        scores = theirs.logits(prompt + answer)[len(prompt) - 1 : -1]
        assert (scores.max(-1) - scores[range(24), answer] < 0.05).all()  # the likeliest, or a near tie with it


def test_the_file_says_nothing_of_this_machine(folder):
    content = (folder / "model.pte").read_bytes()
    assert b"site-packages" not in content and b".py" not in content
