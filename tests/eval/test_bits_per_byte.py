from math import log, log2

import numpy as np
import pytest
import torch

from stages.eval import bits_per_byte
from stages.eval.parts.held_out import HeldOut


def documents(*texts):
    return HeldOut([{"text": text} for text in texts], [])


class Uniform:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def logits(self, ids):
        return np.zeros((len(ids), len(self.tokenizer)), dtype=np.float32)


@pytest.mark.parametrize("context", [2, 7, 4096])
def test_uniform_model_takes_log2_of_the_vocabulary_a_token(context, tokenizer):
    text = "Größe — 12 whales"

    scores = bits_per_byte.score(Uniform(tokenizer), documents(text), bits_per_byte.Params(context=context))

    bits = log2(len(tokenizer)) * len(tokenizer.encode(text))
    assert scores["bits_per_byte"] == pytest.approx(bits / len(text.encode("utf-8")))


def test_equals_cross_entropy_by_torch_window_by_window(tiny, tokenizer, data, tmp_path):
    from stages.lib.runtimes.open import open_runtime
    from stages.lib.store import models

    models.save(tiny, tokenizer, tmp_path / "model")
    p = bits_per_byte.Params(documents=3, characters=400, context=50)

    nats = size = 0
    for row in (data.documents[0], data.documents[13], data.documents[26]):  # 3 of 40, evenly
        ids = tokenizer.encode(row["text"][:400])
        size += len(row["text"][:400].encode())
        while ids:
            window, ids = [tokenizer.bos_token_id, *ids[:49]], ids[49:]
            logits_TV = tiny(torch.tensor([window])).logits[0]
            nats += torch.nn.functional.cross_entropy(logits_TV[:-1], torch.tensor(window[1:]), reduction="sum").item()

    scores = bits_per_byte.score(open_runtime(tmp_path / "model"), data, p)
    assert scores["bits_per_byte"] == pytest.approx(nats / log(2) / size, rel=1e-5)


def test_untrained_model_is_near_uniform_and_the_oracle_needs_no_bits(ignorant, oracle, data):
    p = bits_per_byte.Params(documents=4)
    chance = bits_per_byte.score(Uniform(oracle.tokenizer), data, p)["bits_per_byte"]

    assert bits_per_byte.score(ignorant, data, p)["bits_per_byte"] == pytest.approx(chance, rel=0.1)
    assert bits_per_byte.score(oracle, data, p)["bits_per_byte"] == pytest.approx(0, abs=1e-9)


def test_windows_hold_every_token_once(tokenizer, data):
    text = data.documents[0]["text"]

    windows = list(bits_per_byte.cut(tokenizer, text, 32))

    assert all(window[0] == tokenizer.bos_token_id and len(window) <= 32 for window in windows)
    assert tokenizer.decode([i for window in windows for i in window[1:]]) == text
