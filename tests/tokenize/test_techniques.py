"""What every tokenizer must hold. A new file in stages/tokenize/ is picked up here."""

import pytest
from transformers import AutoTokenizer

from stages.lib.frame import files, params
from stages.lib.store.hub import External
from stages.lib.text import chat

HARD = [
    "Hello, world!",
    " leading and trailing ",
    "tabs\tand\n\n\nlines\r\n",
    "12 + 345 = 357, -0.5e10",
    "na\u00efve caf\u00e9 \u2014 \u4f60\u597d \U0001f34e\u200d\U0001f333",
    "\x00\x7f control",
    "",
]


@pytest.fixture(params=params.techniques("tokenize"))
def technique(request):
    return params.technique_class("tokenize", request.param)


def train(technique, texts, model_folder):
    given = {"method": technique.__module__.rsplit(".", 1)[1], "documents": "data/a", "problems": "data/b"}
    if given["method"] == "pretrained":
        given["external"] = External(source=str(model_folder), sha256=files.digest(model_folder))
    else:
        given["vocab_size"] = 600
    return technique.model_validate(given).train(texts)


def test_decode_of_encode_is_the_text(technique, texts, model_folder):
    tokenizer = train(technique, texts, model_folder)
    for text in [*HARD, *texts[:5]]:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_saved_and_loaded_it_gives_the_same_ids_and_the_same_bytes(technique, texts, model_folder, tmp_path):
    for name in ("one", "two"):
        train(technique, texts, model_folder).save_pretrained(tmp_path / name)
    assert files.digest(tmp_path / "one") == files.digest(tmp_path / "two")
    tokenizer, loaded = train(technique, texts, model_folder), AutoTokenizer.from_pretrained(tmp_path / "one")
    assert [loaded.encode(text) for text in HARD] == [tokenizer.encode(text) for text in HARD]


def test_digits_and_roles_are_tokens_of_their_own(technique, texts, model_folder):
    tokenizer = train(technique, texts, model_folder)
    assert tokenizer.tokenize("2026") == ["2", "0", "2", "6"]
    whole, prompt = chat.chat_ids(tokenizer, "1 + 1", "2"), chat.prompt_ids(tokenizer, "1 + 1")
    assert whole[: len(prompt)] == prompt and whole[-1] == tokenizer.eos_token_id and whole[0] == tokenizer.bos_token_id
    assert tokenizer.decode(whole) == "<|bos|><|user|>1 + 1<|end|><|assistant|>2<|end|>"
