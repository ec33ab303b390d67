"""Both ONNX exports against transformers and against the runtimes they are for."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import _families
from stages.export import compressed, onnx, onnx_genai
from stages.lib.frame import params
from stages.lib.frame.errors import UserError
from stages.lib.runtimes.open import open_runtime
from stages.lib.store import dense, folders, models
from stages.lib.text import chat

PARENTS = {"model": "align/dpo", "tokens": "tokenize/bpe"}


@pytest.fixture(scope="module")
def float32(source_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    technique, tokenizer = onnx.ONNX(method="onnx", type="float32", **PARENTS), models.load_tokenizer(source_folder)
    technique.write(dense.load(source_folder), tokenizer, folder, torch.empty(0, 0))
    return folder


@pytest.fixture
def prompts(rows):
    return [row[: 3 + 7 * i] for i, row in enumerate(rows[:5].tolist())]


@pytest.mark.slow
def test_greedy_text_is_that_of_transformers(float32, source_folder, prompts):
    ours, theirs = (open_runtime(folder) for folder in (float32, source_folder))
    assert ours.generate(prompts, 24) == theirs.generate(prompts, 24)
    ids = prompts[-1]
    assert abs(ours.logits(ids) - theirs.logits(ids)).max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2", "mistral", "gpt2"])
@pytest.mark.parametrize("method", ["onnx", "openvino"])
def test_other_decoders(kind, method, tokenizer, rows, tmp_path):
    """Configs that do not tell the width of a head, or the number of key-value heads."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings = {
        "qwen2": shape | {"num_key_value_heads": 2},
        "mistral": shape | {"num_key_value_heads": 2, "sliding_window": None},
        "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4},
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), initializer_range=0.1, **settings[kind])
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        expected = model(rows[:1]).logits[0].numpy()
    given = {"method": method, "type": {"onnx": "float32", "openvino": "float16"}[method], **PARENTS}
    technique = params.technique_class("export", method).model_validate(given)
    technique.write(model, tokenizer, tmp_path, torch.empty(0, 0))
    runtime, ids = technique.open(tmp_path), rows[0].tolist()
    assert runtime.logits(ids) == pytest.approx(expected, abs=0.02)
    [answer] = runtime.generate([ids[:40]], 6)
    scores = torch.from_numpy(runtime.logits(ids[:40] + answer))[39:-1]
    assert answer == scores.argmax(-1).tolist()


@pytest.mark.slow
def test_the_stop_token_and_the_seed_count(float32, prompts):
    runtime = open_runtime(float32)
    [whole] = runtime.generate(prompts[:1], 8)
    assert runtime.generate(prompts[:1], 8, stops=[whole[4]]) == [whole[: whole.index(whole[4])]]
    one, again, other = (runtime.generate(prompts, 12, temperature=1.0, seed=s) for s in (1, 1, 2))
    assert one == again != other


@pytest.mark.slow
def test_padded_batches_give_what_single_rows_give(float32, rows):
    """As transformers.js calls it: two rows at once, the shorter one padded on the left and masked."""
    session = open_runtime(float32).session
    empty = {each.name: np.zeros((2, 2, 0, 64), np.float32) for each in session.get_inputs() if "past" in each.name}
    ids = np.zeros((2, 8), np.int64)
    ids[0], ids[1, 3:] = rows[0, :8], rows[1, :5]
    mask = np.ones((2, 8), np.int64)
    mask[1, :3] = 0
    places = np.maximum(mask.cumsum(1) - 1, 0)
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": places} | empty
    both = session.run(["logits"], given)[0]
    runtime = open_runtime(float32)
    assert both[0] == pytest.approx(runtime.logits(rows[0, :8].tolist()), abs=1e-3)
    assert both[1, 3:] == pytest.approx(runtime.logits(rows[1, :5].tolist()), abs=1e-3)


SCRIPT = """
import { env, pipeline } from "@huggingface/transformers";
env.allowRemoteModels = false; env.localModelPath = process.argv[2];
const write = await pipeline("text-generation", "model", { dtype: process.argv[3], device: "cpu" });
const said = await write([{ role: "user", content: process.argv[4] }], { max_new_tokens: 16, do_sample: false });
console.log(JSON.stringify(said[0].generated_text.at(-1).content));
"""


@pytest.mark.slow
@pytest.mark.parametrize(("type", "dtype"), [("float32", "fp32"), ("int8", "q8"), ("int4", "q4")])
@pytest.mark.skipif("ORCHARD_TRANSFORMERS_JS" not in os.environ, reason="no folder with transformers.js in it is named")
def test_transformers_js_finds_and_says_the_same(type, dtype, source_folder, tmp_path):
    technique, tokenizer = onnx.ONNX(method="onnx", type=type, **PARENTS), models.load_tokenizer(source_folder)
    (tmp_path / "model").mkdir()
    technique.write(dense.load(source_folder), tokenizer, tmp_path / "model", torch.empty(0, 0))
    folders.finish(tmp_path / "model")
    runtime, prompt = open_runtime(tmp_path / "model"), "What is one and one?"
    [ours] = runtime.generate([chat.prompt_ids(tokenizer, prompt)], 16, stops=chat.stops(tokenizer))
    script = Path(os.environ["ORCHARD_TRANSFORMERS_JS"], "orchard.mjs")
    script.write_text(SCRIPT)
    command = ["node", str(script), str(tmp_path), dtype, prompt]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(said) == tokenizer.decode(ours, skip_special_tokens=True)


@pytest.mark.slow
def test_the_file_says_nothing_of_this_machine(float32):
    content = (float32 / "onnx/model.onnx").read_bytes()
    assert b"site-packages" not in content and b".py" not in content


def test_genai_says_the_same(source_folder, prompts, tmp_path):
    """The loop of onnxruntime-genai, which reads genai_config.json, against ours over the same graph."""
    import onnxruntime_genai

    technique = onnx_genai.ONNXGenAI(method="onnx_genai", type="int4", **PARENTS)
    technique.write(dense.load(source_folder), models.load_tokenizer(source_folder), tmp_path, torch.empty(0, 0))
    ours, theirs = open_runtime(tmp_path), onnxruntime_genai.Model(str(tmp_path))
    parameters, stored = ours.size()
    assert 4 < 8 * stored / parameters < 6
    for prompt in prompts:
        search = onnxruntime_genai.GeneratorParams(theirs)
        search.set_search_options(max_length=len(prompt) + 8, do_sample=False)
        generator = onnxruntime_genai.Generator(theirs, search)
        generator.append_tokens(prompt)
        while not generator.is_done():
            generator.generate_next_token()
        said = generator.get_sequence(0).tolist()[len(prompt) :]
        assert ours.generate([prompt], len(said)) == [said]


def test_a_width_that_the_builder_takes_for_the_head_is_refused(model_folder, tokenizer, tmp_path):
    """intermediate_size == vocab_size: its logits would come from the middle of the model."""
    technique = onnx_genai.ONNXGenAI(method="onnx_genai", type="int4", **PARENTS)
    with pytest.raises(UserError, match=r"take model.layers.0.mlp.gate_proj for the head: both have 512 outputs"):
        technique.write(models.load(model_folder), tokenizer, tmp_path, torch.empty(0, 0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["executorch", "onnx", "onnx_genai", "openvino"])
def test_a_state_space_is_refused(method, tokenizer, tmp_path):
    config = AutoConfig.for_model(
        "mamba2", vocab_size=8, hidden_size=16, num_hidden_layers=1, num_heads=4, head_dim=8, state_size=8, n_groups=1
    )
    model = AutoModelForCausalLM.from_config(config)
    given = {"method": method} | PARENTS | ({} if method == "executorch" else {"type": "int4"})
    technique = params.technique_class("export", method).model_validate(given)
    with pytest.raises(UserError, match="not mamba2"):
        technique.write(model, tokenizer, tmp_path, torch.empty(0, 0))
    assert not list(tmp_path.iterdir())


def test_executorch_refuses_windows(tokenizer, tmp_path):
    technique = params.technique_class("export", "executorch").model_validate({"method": "executorch"} | PARENTS)
    with pytest.raises(UserError, match=r"not in windows as in this mistral \(align/dpo\): choose safetensors"):
        technique.write(_families.make("mistral", tokenizer), tokenizer, tmp_path, torch.empty(0, 0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("method", "type"), [("onnx", "int4"), ("openvino", "int8")])
def test_a_graph_whose_experts_would_stay_floats_is_refused(method, type, tokenizer, tmp_path):
    technique = params.technique_class("export", method).model_validate({"method": method, "type": type} | PARENTS)
    with pytest.raises(UserError, match=rf"{type} can't round the experts of this mixtral \(align/dpo\): take float"):
        technique.write(_families.make("mixtral", tokenizer), tokenizer, tmp_path, torch.empty(0, 0))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "kind"),
    [("onnx", "mistral"), ("onnx", "gemma2"), ("onnx", "gpt_oss"), ("onnx", "deepseek_v3"), ("openvino", "gemma3")],
)
def test_windows_caps_experts_and_latent_keys(method, kind, tokenizer, rows, tmp_path):
    """At once and token by token, far beyond a window."""
    model = _families.make(kind, tokenizer)
    with torch.no_grad():
        expected = model(rows[:1]).logits[0].numpy()
    given = {"method": method, "type": {"onnx": "float32", "openvino": "float16"}[method], **PARENTS}
    technique = params.technique_class("export", method).model_validate(given)
    technique.write(model, tokenizer, tmp_path, torch.empty(0, 0))
    runtime, ids = technique.open(tmp_path), rows[0].tolist()
    close = {"abs": {"onnx": 1e-4, "openvino": 0.05}[method]}
    assert runtime.logits(ids) == pytest.approx(expected, **close)
    _, memory = runtime.step(ids[:20], runtime.empty)
    for place in range(20, 64):
        logits, memory = runtime.step(ids[place : place + 1], memory)
        assert logits[-1] == pytest.approx(expected[place], **close)


def test_rows_that_hold_no_whole_block_are_refused(tokenizer, tmp_path):
    config = AutoConfig.for_model(
        "llama", vocab_size=8, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    technique = onnx_genai.ONNXGenAI(method="onnx_genai", type="int4", **PARENTS)
    with pytest.raises(UserError, match="rows of 16 weights; onnx_genai needs multiples of 32"):
        technique.write(AutoModelForCausalLM.from_config(config), tokenizer, tmp_path, torch.empty(0, 0))


def test_more_than_one_file_can_hold_is_refused():
    config = AutoConfig.for_model("llama", vocab_size=200_000, hidden_size=4096, num_hidden_layers=1)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match="use onnx_genai"):
        onnx.check(model, "float32", "pretrain/base")


def test_a_dense_model_is_not_packed(source_folder, tokenizer, tmp_path):
    technique = compressed.Compressed(method="compressed", **PARENTS)
    with pytest.raises(UserError, match="align/dpo is not quantized"):
        technique.write(dense.stored(source_folder), tokenizer, tmp_path, torch.empty(0, 0))
    assert not list(tmp_path.iterdir())


def test_a_packed_file_is_handed_on_as_it_is(source_folder, packed, tokenizer, tmp_path):
    parent = packed(source_folder, tmp_path / "packed")
    folder = tmp_path / "export"
    folder.mkdir()
    technique = compressed.Compressed(method="compressed", **PARENTS)
    technique.write(technique.load(parent), tokenizer, folder, torch.empty(0, 0))
    from safetensors.torch import load_file

    before, after = (load_file(each / "model.safetensors") for each in (parent, folder))
    assert before.keys() == after.keys()
    assert all(before[name].dtype == after[name].dtype and before[name].equal(after[name]) for name in before)
