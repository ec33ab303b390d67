"""The tokenizer inside a GGUF file against the one that was written into it, and against llama.cpp's reading of it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from stages.export import gguf
from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.runtimes import libllama
from stages.lib.runtimes.open import open_runtime
from stages.lib.store import models
from stages.lib.text import chat, splittings
from stages.tokenize import pretrained
from stages.tokenize.parts import gguf_tokenizer

HARD = [
    "12345 a 1b2 3.14 ½ ² ٣, wait .",
    "  two  spaces\n\n\ttab \r\n end  ",
    "naïve ▁ 日本語 🙂 don't I'll",
    "<|bos|><|user|>hi 3+4=?<|end|><|assistant|> <|endish|>",
]


@pytest.fixture(scope="module")
def folder(model_folder, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    technique = gguf.GGUF(method="gguf", model="a/b", tokens="a/b", type="F16")
    technique.write(models.load(model_folder), tokenizer, folder, torch.empty(0, 0))
    return folder


@pytest.fixture(scope="module")
def read(folder):
    file = folder / "model.gguf"
    parents = {"documents": "data/corpus", "problems": "data/problems"}
    external = {"source": str(file), "sha256": files.digest(file)}
    return pretrained.Pretrained(method="pretrained", external=external, **parents).train([])


@pytest.mark.parametrize("text", HARD)
def test_it_numbers_text_as_the_one_it_was_written_from_and_as_llama_cpp(text, read, folder, tokenizer):
    ids = read.encode(text, add_special_tokens=False)
    assert ids == tokenizer.encode(text, add_special_tokens=False)
    assert ids == open_runtime(folder).model.tokenize(text, add_bos=False, special=True)
    assert read.decode(ids) == text


def test_special_tokens_and_template_are_the_files(read, tokenizer):
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(read, name) == getattr(tokenizer, name)
    assert chat.chat_ids(read, "1 + 1", "2") == chat.chat_ids(tokenizer, "1 + 1", "2")
    assert read.decode(chat.chat_ids(read, "1 + 1", "2"), skip_special_tokens=True) == "1 + 12"


def test_what_it_cannot_split_alike_is_refused():
    with pytest.raises(UserError, match="x.gguf splits text as 'viking'; known are: gpt-2, smollm, llama-bpe"):
        gguf_tokenizer.byte_level({"pre": "viking"}, "x.gguf")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_real_vocabularies_number_text_as_llama_cpp_does_also_after_saving(name, texts, tmp_path):
    file = Path("models") / f"{name}.gguf"
    if not file.is_file():
        pytest.skip(f"make {file}")
    tokenizer, model = gguf_tokenizer.read(file, str(file)), libllama.Model(str(file))
    tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    added = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    for text in [*texts, *HARD, *splittings.HARD, *(f"x {token} y" for token in added[:300:7])]:
        ids = model.tokenize(text)
        assert tokenizer.encode(text, add_special_tokens=False) == ids, text
        assert saved.encode(text, add_special_tokens=False) == ids, text
        assert saved.decode(ids) == text or "▁" in text  # which SentencePiece takes for a space
    paris = "The capital of France is Paris."
    assert len(model.tokenize(paris)) == len(saved.encode(paris, add_special_tokens=False)) == 7
    assert model.tokenize(paris, add_bos=True) == saved.encode(paris)
