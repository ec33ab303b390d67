from math import log, log2

import numpy as np
import pytest
import torch

from stages.eval import bits_per_byte
from stages.lib.frame.errors import UserError


def measure(**more):
    return bits_per_byte.BitsPerByte(records="data/corpus", **more)


class Uniform:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def logits(self, ids):
        return np.zeros((len(ids), len(self.tokenizer)), dtype=np.float32)

    def generate(self, prompts, max_new_tokens, stops=(), temperature=0, seed=0):
        return [[5] * max_new_tokens for _ in prompts]


@pytest.mark.parametrize("context", [2, 7, 4096])
def test_uniform_model_takes_log2_of_the_vocabulary_a_token(context, tokenizer):
    text = "Größe — 12 whales"

    scores = measure(context=context).score(Uniform(tokenizer), [{"id": "0", "text": text}])

    bits = log2(len(tokenizer)) * len(tokenizer.encode(text))
    assert scores.metrics["bits_per_byte"] == pytest.approx(bits / len(text.encode("utf-8")))


def test_equals_cross_entropy_by_torch_window_by_window(tiny, tokenizer, documents, tmp_path):
    from stages.lib.store import models

    models.save(tiny, tokenizer, tmp_path / "model")
    nats = size = 0
    for row in (documents[0], documents[13], documents[26]):  # 3 of 40, evenly
        ids = tokenizer.encode(row["text"][:400])
        size += len(row["text"][:400].encode())
        while ids:
            window, ids = [tokenizer.bos_token_id, *ids[:49]], ids[49:]
            logits_TV = tiny(torch.tensor([window])).logits[0]
            nats += torch.nn.functional.cross_entropy(logits_TV[:-1], torch.tensor(window[1:]), reduction="sum").item()

    scores = measure(documents=3, characters=400, context=50).evaluate(tmp_path / "model", documents)
    assert scores.metrics["bits_per_byte"] == pytest.approx(nats / log(2) / size, rel=1e-5)


def test_untrained_model_is_near_uniform_and_the_oracle_needs_no_bits(ignorant, oracle, documents):
    uniform, untrained, certain = (
        measure(documents=4).score(runtime, documents).metrics["bits_per_byte"]
        for runtime in (Uniform(oracle.tokenizer), ignorant, oracle)
    )

    assert untrained == pytest.approx(uniform, rel=0.1)
    assert certain == pytest.approx(0, abs=1e-9)


def test_samples_are_continuations_of_held_out_texts(oracle, documents):
    continuations = measure(documents=4).score(oracle, documents).samples["continuations"]

    openings = [shown["opening"] for shown in continuations]
    assert all(documents[n]["text"].startswith(text) for n, text in zip((0, 13, 26), openings, strict=True))


def test_records_without_text_are_refused(oracle, problems):
    with pytest.raises(UserError, match="eval.bits_per_byte.records: record 'chain_sum-0' has no text"):
        measure().score(oracle, problems)


def test_windows_hold_every_token_once(tokenizer, documents):
    text = documents[0]["text"]

    windows = list(bits_per_byte.cut(tokenizer, text, 32))

    assert all(window[0] == tokenizer.bos_token_id and len(window) <= 32 for window in windows)
    assert tokenizer.decode([i for window in windows for i in window[1:]]) == text
