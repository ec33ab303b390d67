"""The tokenizer inside a GGUF file against the one that was written into it, and against llama.cpp's reading of it."""

import pytest
import torch

from stages.export import gguf
from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.runtimes.open import open_runtime
from stages.lib.store import models
from stages.lib.text import chat
from stages.tokenize import pretrained

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


def test_what_it_cannot_split_alike_is_refused(read):
    with pytest.raises(UserError, match="x.gguf splits text as 'llama-bpe'; known are: gpt-2, smollm"):
        pretrained.byte_level({"pre": "llama-bpe"}, "x.gguf")
