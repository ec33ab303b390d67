"""TQ1_0 and TQ2_0: the weights of the file, both llama.cpp's, and what is refused."""

import pytest
import torch

from apps.parts.llama import Llama
from stages.export import gguf
from stages.export.__main__ import size
from stages.lib.frame.errors import UserError
from stages.lib.nets import losses
from stages.lib.runtimes.base import logits
from stages.lib.runtimes.open import open_runtime
from stages.lib.store import dense, models

PARENTS = {"model": "align/dpo", "tokens": "tokenize/bpe"}
BITS = {"TQ1_0": 8 * 54 / 256, "TQ2_0": 8 * 66 / 256}  # bytes of a block of 256 weights, scale included


@pytest.fixture(scope="module", params=BITS)
def type(request):
    return request.param


@pytest.fixture(scope="module")
def folder(type, ternary_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp(type)
    technique, tokenizer = gguf.GGUF(method="gguf", type=type, **PARENTS), models.load_tokenizer(ternary_folder)
    technique.write(dense.load(ternary_folder), tokenizer, folder, torch.empty(0, 0))
    return folder


@pytest.fixture(scope="module")
def runtime(folder):
    return open_runtime(folder)


def test_the_file_holds_the_trained_weights_exactly(folder, type, ternary_folder):
    from gguf import MODEL_ARCH, GGUFReader, dequantize, get_tensor_name_map

    model = models.load(ternary_folder)
    held = {t.name: t for t in GGUFReader(folder / "model.gguf").tensors}
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, 2)
    for name, weight in model.state_dict().items():
        if ".layers." not in name or weight.ndim == 1:
            continue
        tensor = held[names.get_name(name, try_suffixes=(".weight",))]
        assert tensor.tensor_type.name == type
        assert tensor.n_bytes * 8 / tensor.n_elements == BITS[type]
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        expected = weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape) if heads else weight
        assert torch.equal(torch.from_numpy(dequantize(tensor.data, tensor.tensor_type)), expected), name
    assert held["token_embd.weight"].tensor_type.name == "Q8_0"


def test_runs_in_mainstream_llama_cpp_as_the_same_model(runtime, ternary_folder, rows):
    """llama.cpp rounds inputs to 8 bits, 256 at a time, and the embedding to Q8_0."""
    source = open_runtime(ternary_folder)
    seen = losses.compare(logits(source), logits(runtime), rows[:4])
    assert 0 < seen["kl"] < 1e-3
    assert seen["same_top"] > 0.9  # untrained: many near ties


def test_logits_are_those_of_the_server(runtime, rows):
    """The functions called here against the same library's server: every token's probability."""
    server = Llama(runtime.file).server
    for ids in rows[:3, :40].tolist():
        request = {"prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": len(runtime.tokenizer)}
        first = server.handle_completions(request)["choices"][0]["logprobs"]["content"][0]
        theirs = {each["id"]: each["logprob"] for each in first["top_logprobs"]}
        ours = torch.from_numpy(runtime.logits(ids)[-1]).log_softmax(-1)
        assert [theirs[i] for i in range(len(ours))] == pytest.approx(ours.tolist(), abs=0.01)


def test_generation_is_a_loop_over_logits(runtime, rows):
    prompts = [row[: 5 + n] for n, row in enumerate(rows[:3].tolist())]
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(5):
            ids.append(int(runtime.logits(ids)[-1].argmax()))
        expected.append(ids[len(prompt) :])
    assert runtime.generate(prompts, 5) == expected


def test_greedy_tokens_are_those_of_transformers_where_they_are_clear(runtime, ternary_folder, rows):
    """Where its best two logits are further apart than the rounding of the inputs may move them."""
    source, checked = open_runtime(ternary_folder), 0
    for ids in rows[:4, :30].tolist():
        for _ in range(8):
            logits = torch.from_numpy(source.logits(ids)[-1])
            best, second = logits.topk(2).values.tolist()
            if best - second > 0.2 * logits.std():
                assert runtime.generate([ids], 1) == [[int(logits.argmax())]]
                checked += 1
            ids.append(int(logits.argmax()))
    assert checked > 5


def test_the_measured_bits_count_scales_and_embedding(folder, runtime, type):
    layers, embedding, norms = 2 * (256 * (256 + 128 + 128 + 256) + 3 * 256 * 512), 512 * 256, 5 * 256
    expected = (layers * BITS[type] + embedding * 8.5 + norms * 32) / (layers + embedding + norms)
    assert size(runtime, folder)["bits_per_weight"] == pytest.approx(expected)


def test_nothing_is_printed(folder, capfd):
    open_runtime(folder).logits([1, 2, 3])
    assert capfd.readouterr() == ("", "")


def test_a_truncated_file_is_named(folder, tmp_path):
    for file in folder.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[: len(content) // 2] if file.suffix == ".gguf" else content)
    with pytest.raises(UserError, match="damaged"):
        open_runtime(tmp_path)


def test_dense_weights_short_rows_and_calibration_are_refused(type, model_folder, tiny, tokenizer, tmp_path):
    from stages.lib.nets import rounding

    technique = gguf.GGUF(method="gguf", type=type, **PARENTS)
    with pytest.raises(UserError, match=f"GGUF {type}: .*q_proj has .* different weights, not -s, 0 and s; train its"):
        technique.write(models.load(model_folder), tokenizer, tmp_path, torch.empty(0, 0))
    with rounding.rounding(tiny, rounding.FakeQuantize(weights="ternary")):
        pass
    with pytest.raises(UserError, match=f"rows of 128 weights; {type} needs multiples of 256"):
        technique.write(tiny, tokenizer, tmp_path, torch.empty(0, 0))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=f"{type} rounds the same with calibration and without"):
        gguf.GGUF(method="gguf", type=type, calibration={"rows": 4, "seed": 0}, **PARENTS)
