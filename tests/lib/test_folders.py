"""What a model folder says to others: transformers 4.57, in an environment of its own, must compute the same logits.

ORCHARD_TRANSFORMERS4_PYTHON names its Python; without that one is made in the user's cache folder, once.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import _families
from stages.export import safetensors
from stages.lib.store import folders, loading, models

IDS = list(range(3, 43))
TEXTS = [
    "12345 a 1b2, wait .",
    "  two  spaces\n\n\ttab ",
    "naïve 日本語 🙂 don't",
    "<|bos|><|user|>hi<|end|><|endish|>",
]
CHAT = [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]
PACKAGES = ("transformers==4.57.*", "torch==2.13.0", "numpy", "safetensors", "tokenizers", "sentencepiece")
READ = """
import json, sys
import torch, numpy
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer

ids, texts, chat = json.loads(sys.argv[2])
for folder in sorted(Path(sys.argv[1]).iterdir()):
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, torch_dtype="auto")
    if getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # the fast one leaves the caps out, and no file can say so
    with torch.no_grad():
        numpy.save(folder / "theirs.npy", model(torch.tensor([ids])).logits[0].float().numpy())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    said = {
        "dtype": str(model.dtype),
        "wrong": [name for names in info.values() for name in names],
        "ids": [tokenizer(text)["input_ids"] for text in texts],
        "chat": tokenizer.apply_chat_template(chat, tokenize=False),
        "special": tokenizer.all_special_tokens,
        "fast": tokenizer.is_fast,
    }
    (folder / "theirs.json").write_text(json.dumps(said))
"""
PHI3_LONG = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 50000.0,
        "short_factor": [1.0 + i / 8 for i in range(8)],
        "long_factor": [4.0 + i for i in range(8)],
        "original_max_position_embeddings": 32,
    },
    "original_max_position_embeddings": 32,
    "max_position_embeddings": 128,
}
YARN = {"rope_type": "yarn", "rope_theta": 50000.0, "factor": 4.0, "original_max_position_embeddings": 128}
MORE = {  # folder -> family, what else its config says
    "phi3-long": ("phi3", PHI3_LONG),
    "qwen3-yarn": ("qwen3", {"rope_parameters": YARN}),
    "gemma3-stretched": (
        "gemma3",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
            }
        },
    ),
}
MORE |= {f"{name}-theta": (name, {"rope_theta": 70000.0}) for name in ("llama", "falcon_h1", "qwen3_next", "cohere2")}


@pytest.fixture(scope="module")
def python() -> str:
    if named := os.environ.get("ORCHARD_TRANSFORMERS4_PYTHON"):
        return named
    place = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "orchard", "transformers-4.57")
    found, ready = place / "bin" / "python", place / "ready"
    if not ready.is_file():
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        done = subprocess.run([found, "-m", "pip", "install", "-q", *PACKAGES], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"transformers 4.57 can't be installed: {done.stderr.strip().splitlines()[-1]}")
        ready.touch()
    return str(found)


@pytest.fixture(scope="module")
def read(python, tokenizer, tmp_path_factory):
    """A folder of models as the stages write them, with what 4.57 says of each beside it."""
    place = tmp_path_factory.mktemp("models")
    families = {name: (name, {}) for name in _families.FAMILIES} | MORE
    for name, (family, more) in families.items():
        models.save(_families.make(family, tokenizer, **more), tokenizer, place / name)
    technique = safetensors.Safetensors(method="safetensors", model="a/b", tokens="a/b")
    (place / "export").mkdir()
    net = _families.make("llama", tokenizer)
    technique.write(net, tokenizer, place / "export", torch.empty(0, 0))
    said = json.dumps([IDS, TEXTS, CHAT])
    done = subprocess.run([python, "-c", READ, str(place), said], capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
    return place


@pytest.mark.slow
@pytest.mark.parametrize("name", [*_families.FAMILIES, *MORE, "export"])
def test_transformers_4_says_the_same(name, read, tokenizer):
    folder = read / name
    model = models.load(folder, "stored")
    with torch.no_grad():
        ours = model(torch.tensor([IDS])).logits[0].float().numpy()
    theirs, said = np.load(folder / "theirs.npy"), json.loads((folder / "theirs.json").read_text())
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(ours).max()
    assert not said["wrong"] and said["fast"] and said["dtype"] == str(model.dtype)
    assert said["ids"] == [tokenizer(text)["input_ids"] for text in TEXTS]
    assert said["chat"] == tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert sorted(said["special"]) == sorted(tokenizer.all_special_tokens)


@pytest.mark.parametrize("family", _families.FAMILIES)
def test_the_old_names_change_nothing_for_the_new_version(family, tokenizer, tmp_path):
    model = _families.make(family, tokenizer)
    models.save(model, tokenizer, tmp_path / "model")
    back = loading.load(tmp_path / "model", "ours")
    with torch.no_grad():
        torch.testing.assert_close(back(torch.tensor([IDS])).logits, model(torch.tensor([IDS])).logits)
    written = [(tmp_path / "model" / name).read_bytes() for name in ("config.json", "model.safetensors")]
    models.save(back, tokenizer, tmp_path / "again")
    assert written == [(tmp_path / "again" / name).read_bytes() for name in ("config.json", "model.safetensors")]


def test_others_than_the_writer_may_read_and_json_is_json(tokenizer, tmp_path):
    models.save(_families.make("mamba2", tokenizer), tokenizer, tmp_path / "model")
    assert {oct(file.stat().st_mode & 0o777) for file in (tmp_path / "model").iterdir()} == {"0o644"}

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    about = json.loads((tmp_path / "model/config.json").read_text(), parse_constant=refuse)
    assert about["time_step_limit"] == [0.0, folders.LARGEST]


def test_the_tokenizer_names_no_class_of_version_5(tokenizer, tmp_path):
    models.save(_families.make("llama", tokenizer), tokenizer, tmp_path / "model")
    about = json.loads((tmp_path / "model/tokenizer_config.json").read_text())
    assert about["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert about["additional_special_tokens"] == ["<|system|>", "<|user|>", "<|assistant|>"]
    back = models.load_tokenizer(tmp_path / "model")
    assert back.all_special_tokens == tokenizer.all_special_tokens
    assert [back(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]


def test_shards_are_listed_counted_and_read(tokenizer, tmp_path):
    from stages.lib.runtimes import base
    from stages.lib.runtimes.open import open_runtime
    from stages.lib.store import manifest

    model = _families.make("llama", tokenizer)
    (tmp_path / "model").mkdir()
    models.write(model, tokenizer, tmp_path / "model", shard="100KB")
    shards = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(shards) > 5
    runtime = open_runtime(tmp_path / "model")
    assert runtime.size() == (model.num_parameters(), 4 * model.num_parameters())
    assert base.file_bytes(tmp_path / "model") == sum(file.stat().st_size for file in shards)
    with torch.no_grad():
        np.testing.assert_allclose(runtime.logits(IDS), model(torch.tensor([IDS])).logits[0], atol=1e-5)
    manifest.write(tmp_path / "model")
    assert {file.name for file in shards} | {loading.INDEX} <= manifest.read(tmp_path / "model").keys()
    shards[1].unlink()
    assert manifest.problems(tmp_path / "model") == [f"{shards[1].name} is missing"]
