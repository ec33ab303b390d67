from time import sleep

import pytest

from stages.eval import speed
from stages.eval.parts import memory
from stages.lib.frame.errors import UserError
from stages.lib.runtimes.base import file_bytes

SECONDS = {"first": 0.02, "token": 0.002}


class Metronome:
    """Takes a known time for the prompt and for every further token."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def generate(self, prompts, max_new_tokens, stops=(), temperature=0, seed=0):
        sleep(SECONDS["first"] + SECONDS["token"] * (max_new_tokens - 1))
        return [[5] * max_new_tokens for _ in prompts]


def measure(**more):
    return speed.Speed(records="data/corpus", **more)


def test_speeds_are_those_of_a_model_of_known_speed(tokenizer, documents):
    technique = measure(prompt_tokens=100, new_tokens=32, repeats=5, energy_seconds=0)

    scores = technique.score(Metronome(tokenizer), documents).timings

    assert set(scores) == {"prefill_tokens_per_second", "decode_tokens_per_second"}
    assert scores["prefill_tokens_per_second"] == pytest.approx(100 / SECONDS["first"], rel=0.3)
    assert scores["decode_tokens_per_second"] == pytest.approx(1 / SECONDS["token"], rel=0.3)


def test_noise_is_no_speed(tokenizer, documents):
    """A first token that takes longer than all of them once told a billion tokens a second."""

    class Slower(Metronome):
        def generate(self, prompts, max_new_tokens, stops=(), temperature=0, seed=0):
            return super().generate(prompts, 10 if max_new_tokens == 1 else 1)

    scores = measure(new_tokens=2, repeats=3, energy_seconds=0).score(Slower(tokenizer), documents).timings
    assert set(scores) == {"prefill_tokens_per_second"}


def test_energy_is_a_few_watts_and_says_whether_it_was_measured(tokenizer, documents):
    technique = measure(prompt_tokens=10, new_tokens=16, repeats=1, energy_seconds=0.3)

    scores = technique.score(Metronome(tokenizer), documents).timings

    watts = scores["joules_per_token"] * 16 / (SECONDS["first"] + 15 * SECONDS["token"])
    assert 0.5 < watts < 2000
    assert scores["energy_measured"] in (0, 1)


class Diary:
    """Writes down what it is asked for."""

    def __init__(self, tokenizer):
        self.tokenizer, self.asked = tokenizer, []

    def generate(self, prompts, max_new_tokens, stops=(), temperature=0, seed=0):
        self.asked.append((len(prompts[0]), max_new_tokens))
        return [[5] * max_new_tokens for _ in prompts]


def test_it_asks_for_so_many_tokens_so_often(tokenizer, documents):
    """After one warm-up: the first token alone and all of them, in turn."""
    diary = Diary(tokenizer)

    measure(prompt_tokens=100, new_tokens=32, repeats=3, energy_seconds=0).score(diary, documents)

    assert diary.asked == [(100, 32), *[(100, 1), (100, 32)] * 3]


def test_the_artefact_is_weighed_by_its_tensors_and_its_file(documents, model_folder):
    from safetensors.torch import load_file

    scores = measure(new_tokens=2, repeats=1, energy_seconds=0).evaluate(model_folder, documents)

    weights = load_file(model_folder / "model.safetensors").values()
    assert scores.metrics == {
        "parameters": sum(weight.numel() for weight in weights),
        "bits_per_weight": 32,
        "bytes": (model_folder / "model.safetensors").stat().st_size,
    }
    assert scores.timings["peak_memory_bytes"] > 0


def test_peak_memory_sees_what_was_taken_and_given_back():
    before = memory.reset_peak()
    if before is None:
        pytest.skip("only Linux tells the peak")

    block = bytearray(b"x" * 80_000_000)
    del block

    assert 70e6 <= memory.peak() - before < 200e6  # a page or two may have been there already
    assert memory.reset_peak() <= before + 40e6


def test_bytes_are_those_of_the_weights(tmp_path, model_folder):
    assert file_bytes(model_folder) == (model_folder / "model.safetensors").stat().st_size

    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="no file that ends in .gguf or .safetensors"):
        file_bytes(tmp_path)
