"""Both runtimes against a plain loop over logits, and what a damaged file gets."""

import shutil

import numpy as np
import pytest
import torch

from stages.export import gguf
from stages.lib.frame.errors import UserError
from stages.lib.runtimes import llama_cpp
from stages.lib.runtimes.base import choose
from stages.lib.runtimes.open import open_runtime
from stages.lib.store import dense, models


@pytest.fixture(scope="module")
def gguf_folder(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    technique = gguf.GGUF(method="gguf", type="F16", model="align/dpo", tokens="tokenize/bpe")
    technique.write(dense.load(model_folder), models.load_tokenizer(model_folder), folder, torch.empty(0, 0))
    return folder


@pytest.fixture(params=["transformers", "llama.cpp"])
def folder(request, model_folder, gguf_folder):
    return {"transformers": model_folder, "llama.cpp": gguf_folder}[request.param]


@pytest.fixture
def runtime(folder):
    return open_runtime(folder)


@pytest.fixture
def prompts(rows):
    """Eleven of unequal lengths: more than llama.cpp's batch."""
    return [row[: 3 + 5 * (i % 4)] for i, row in enumerate(rows[:11].tolist())]


def by_hand(runtime, prompt, length):
    ids = list(prompt)
    for _ in range(length):
        ids.append(int(runtime.logits(ids)[-1].argmax()))
    return ids[len(prompt) :]


def test_the_folder_decides(folder, runtime):
    assert isinstance(runtime, llama_cpp.LlamaCpp) == (folder / "model.gguf").exists()


def test_logits_are_the_models(runtime, model_folder, rows):
    with torch.no_grad():
        expected = models.load(model_folder)(rows[:1]).logits[0].numpy()
    logits = runtime.logits(rows[0].tolist())
    assert (logits.shape, logits.dtype) == (expected.shape, np.float32)
    assert abs(logits - expected).max() < 0.01 * expected.std()


def test_logits_do_not_remember(runtime, prompts, rows):
    before = runtime.logits(prompts[0])
    runtime.logits(rows[0].tolist())
    runtime.generate(prompts, 10)
    assert abs(runtime.logits(prompts[0]) - before).max() < 1e-4 * before.std()


def test_greedy_generation_is_a_loop_over_logits(runtime, prompts):
    assert runtime.generate(prompts, 6) == [by_hand(runtime, prompt, 6) for prompt in prompts]


def test_generation_ends_before_the_stop_token(runtime, prompts):
    for prompt, whole in zip(prompts[:3], runtime.generate(prompts[:3], 8), strict=True):
        stop = whole[4]
        expected = whole[: whole.index(stop)]
        assert runtime.generate([prompt], 8, [stop]) == [expected]
        assert runtime.generate([*prompts, prompt], 8, [stop])[-1] == expected


def test_same_seed_same_samples(runtime, prompts):
    one, again, other = (runtime.generate(prompts, 12, temperature=1.0, seed=s) for s in (1, 1, 2))
    assert one == again != other
    assert [len(answer) for answer in one] == [12] * len(prompts)


def test_low_temperature_is_nearly_greedy(runtime, prompts):
    assert runtime.generate(prompts[:3], 4, temperature=1e-5) == runtime.generate(prompts[:3], 4)


def test_draws_follow_the_softmax():
    logits = np.tile(np.array([0.0, 1.0, 2.0, -1.0], dtype=np.float32), (40_000, 1))
    drawn = choose(logits, 2.0, np.random.default_rng(0))
    weights = np.exp(logits[0] / 2.0)
    assert np.bincount(drawn) / len(drawn) == pytest.approx(weights / weights.sum(), abs=0.01)


def test_size_counts_what_the_file_holds(folder, runtime, model_folder):
    model = models.load(model_folder)
    bits = {True: 16, False: 32}[(folder / "model.gguf").exists()]
    norms = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    expected = (model.num_parameters() - norms) * bits // 8 + norms * 4
    assert runtime.size() == (model.num_parameters(), expected)


def test_nothing_is_printed(gguf_folder, capfd):
    open_runtime(gguf_folder).logits([1, 2, 3])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_a_truncated_file_is_named(folder, tmp_path, keep):
    for file in folder.iterdir():
        content = file.read_bytes()
        if file.suffix in (".gguf", ".safetensors"):
            content = content[: keep if isinstance(keep, int) else int(len(content) * keep)]
        (tmp_path / file.name).write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        open_runtime(tmp_path)


def test_a_damaged_config_is_named(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"a":')
    with pytest.raises(UserError, match="damaged"):
        open_runtime(tmp_path / "model")


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} "):
        open_runtime(tmp_path)
