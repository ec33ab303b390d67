"""Tokenizers of others: the numbers that SentencePiece and tokenizer.json give, templates for those without one."""

import io
import json
import shutil
from typing import Any

import pytest
from pydantic import ValidationError

from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.store import models
from stages.lib.text import chat, templates
from stages.tokenize import pretrained

HARD = [
    "The capital of France is Paris.",
    "12345 a 1b2 3.14 ½ ², wait .",
    "  two  spaces\n\n\ttab \r\n end  ",
    "naïve 日本語 🙂 don't I'll",
    "",
    " x",
]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def read(folder, **more):
    parents = {"documents": "data/corpus", "problems": "data/problems"}
    external = {"source": str(folder), "sha256": files.digest(folder)}
    technique = pretrained.Pretrained.model_validate({"method": "pretrained", "external": external, **parents, **more})
    return technique.train([])


def saved(tokenizer, folder):
    """As the stage saves it and the next one reads it."""
    tokenizer.save_pretrained(folder)
    return models.load_tokenizer(folder)


@pytest.fixture
def folder(tokenizer, tmp_path):
    """folder(changes to tokenizer_config.json): None takes an entry out."""

    def write(**changes: Any):
        place = tmp_path / "theirs"
        tokenizer.save_pretrained(place)
        about = json.loads((place / "tokenizer_config.json").read_text()) | changes
        about = {name: value for name, value in about.items() if value is not None}
        (place / "tokenizer_config.json").write_text(json.dumps(about))
        return place

    return write


@pytest.fixture
def base(folder):
    """base(changes): without a chat template."""

    def write(**changes: Any):
        place = folder(**changes)
        (place / "chat_template.jinja").unlink()
        return place

    return write


def sentencepiece(texts, folder, **more):
    import sentencepiece

    model = io.BytesIO()
    given: dict[str, Any] = {"model_type": "bpe", "normalization_rule_name": "identity", "add_dummy_prefix": True}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in texts for line in text.split("\n")]),
        model_writer=model,
        vocab_size=700,
        byte_fallback=True,
        character_coverage=0.99,
        remove_extra_whitespaces=False,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
        **given | more,
    )
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    about = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_model_gives_its_own_numbers(kind, prefix, texts, tmp_path):
    own = sentencepiece(texts, tmp_path / "theirs", model_type=kind, add_dummy_prefix=prefix)
    made = read(tmp_path / "theirs")
    for tokenizer in (made, saved(made, tmp_path / "ours")):
        assert [tokenizer.encode(text, add_special_tokens=False) for text in HARD] == [
            own.encode(text) for text in HARD
        ]
        assert [tokenizer.decode(own.encode(text)) for text in HARD] == HARD
        assert len(tokenizer) == own.get_piece_size() and tokenizer("x").input_ids[0] == own.bos_id()


def test_one_that_transformers_would_read_otherwise_is_refused(texts, tmp_path):
    sentencepiece(texts, tmp_path / "theirs", normalization_rule_name="nmt_nfkc")
    with pytest.raises(
        UserError, match="theirs has only tokenizer.model, of which transformers makes a tokenizer with"
    ):
        read(tmp_path / "theirs")


@pytest.mark.parametrize("kind", ["Qwen2Tokenizer", "LlamaTokenizer", "GemmaTokenizer", "GPT2Tokenizer"])
def test_tokenizer_json_is_taken_as_it_is_whatever_class_is_named(kind, folder, tokenizer, tmp_path):
    (place := folder(tokenizer_class=kind)).joinpath("config.json").write_text('{"model_type": "llama"}')
    made = read(place)
    for each in (made, saved(made, tmp_path / "ours")):
        assert len(each) == len(tokenizer)
        for text in HARD:
            assert each.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("name", ["bos_token", "pad_token"])
def test_what_a_model_does_not_have_is_not_invented(name, folder, tokenizer, tmp_path):
    made = saved(read(folder(**{name: None})), tmp_path / "ours")
    assert getattr(made, name) is None and len(made) == len(tokenizer)
    assert made.eos_token == tokenizer.eos_token
    assert chat.start(made) == [made.eos_token_id if name == "bos_token" else tokenizer.bos_token_id]
    assert chat.filler(made) in range(len(made))


def test_further_special_tokens_are_kept(folder, tokenizer, tmp_path):
    made = saved(read(folder(extra_special_tokens=None, additional_special_tokens=["<|system|>"])), tmp_path / "ours")
    assert "<|system|>" in made.all_special_tokens and len(made) == len(tokenizer)


def test_special_tokens_that_only_the_class_of_a_model_names(tokenizer, tmp_path):
    """GPT-2's folder on the hub: its tokenizer_config.json says how long texts may be, and nothing else."""
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str().replace("<|end|>", "<|endoftext|>"))
    (tmp_path / "theirs").mkdir()
    Tokenizer.from_str(json.dumps(state)).save(str(tmp_path / "theirs/tokenizer.json"))
    (tmp_path / "theirs/config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "theirs/tokenizer_config.json").write_text('{"model_max_length": 1024}')
    made = read(tmp_path / "theirs")
    assert made.eos_token == "<|endoftext|>" and len(made) == len(tokenizer)


def test_no_tokenizer_files_are_refused(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="theirs has no tokenizer: none of tokenizer.json, tokenizer.model, vocab.json"):
        read(tmp_path / "theirs")
    (tmp_path / "theirs/tokenizer.json").write_text('{"version')
    with pytest.raises(UserError, match="theirs can't be opened: ") as error:
        read(tmp_path / "theirs")
    assert "\n" not in str(error.value)


def test_a_base_model_gets_a_plain_template_that_ends_with_eos(base, tokenizer, tmp_path, capsys):
    made = saved(read(base()), tmp_path / "ours")
    assert "theirs: 512 tokens, Orchard's plain chat template, an answer ends at <|end|>" in capsys.readouterr().out
    assert made.decode(chat.chat_ids(made, "1 + 1", "2")) == "user:\n1 + 1\n\nassistant:\n2<|end|>"
    assert made.decode(chat.prompt_ids(made, "1 + 1")) == "user:\n1 + 1\n\nassistant:\n"
    assert chat.stops(made) == [tokenizer.eos_token_id] and len(made) == len(tokenizer)


def test_bos_stands_before_it_where_the_model_knows_texts_so(base, tmp_path):
    from tokenizers import processors

    made = read(base())
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", 1)]
    )
    made.chat_template = None
    made.save_pretrained(tmp_path / "begins")
    again = read(tmp_path / "begins")
    assert again.decode(chat.chat_ids(again, "1", "2")) == "<|bos|>user:\n1\n\nassistant:\n2<|end|>"


def test_a_base_model_with_the_tokens_of_chatml_gets_chatml(base, tmp_path):
    place = base(eos_token=None)
    state = (place / "tokenizer.json").read_text()
    state = state.replace("<|user|>", "<|im_start|>").replace("<|assistant|>", "<|im_end|>")
    (place / "tokenizer.json").write_text(state)
    about = json.loads((place / "tokenizer_config.json").read_text())
    del about["extra_special_tokens"]
    (place / "tokenizer_config.json").write_text(json.dumps(about | {"eos_token": "<|end|>"}))
    made = read(place)
    asked = made.decode(chat.prompt_ids(made, "1 + 1"))
    assert asked == "<|im_start|>user\n1 + 1<|im_end|>\n<|im_start|>assistant\n"
    assert made.convert_ids_to_tokens(chat.stops(made)) == ["<|im_end|>", "<|end|>"]
    assert read(place, chat_template="plain").convert_ids_to_tokens(chat.stops(made))[0] == "<|im_end|>"


def test_a_template_can_be_given_and_is_pinned_by_what_it_says(base, folder, tmp_path, capsys):
    file = tmp_path / "mine.jinja"
    file.write_text("{% for message in messages %}[{{ message['content'] }}]{% endfor %}")
    given = {"source": str(file), "sha256": files.digest(file)}
    for place in (base(), folder()):
        assert read(place, chat_template=given).chat_template == file.read_text()
    assert "given chat template" in capsys.readouterr().out
    assert "assistant:\n" in read(folder(), chat_template="plain").chat_template
    with pytest.raises(UserError, match="theirs: chat_template chatml needs the control token <|im_start|>"):
        read(folder(), chat_template="chatml")
    for wrong in ({"source": str(file)}, {"source": str(file), "sha256": "0" * 64}):
        with pytest.raises(ValidationError, match=files.digest(file)):
            read(base(), chat_template=wrong)
    with pytest.raises(ValidationError, match="'no.jinja' is no file"):
        read(base(), chat_template={"source": "no.jinja", "sha256": "0" * 64})


def test_of_several_named_templates_the_default_is_taken(folder, tokenizer):
    shutil.rmtree(folder())
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "y{{ messages[-1]['content'] }}"}]
    place = folder(chat_template=named)
    (place / "chat_template.jinja").unlink()
    assert read(place).chat_template == named[1]["template"]
    place = folder(chat_template=named[:1])
    (place / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="theirs: its chat templates are tool_use, none of them 'default'; give one as"):
        read(place)


def test_a_template_that_drops_the_answer_is_refused_with_the_source(folder):
    (place := folder()).joinpath("chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    with pytest.raises(UserError, match="theirs: the chat template changes or drops the answer"):
        read(place)


def test_the_named_templates_are_those_that_models_know():
    assert templates.CHATML == CHATML


def test_code_in_the_folder_is_refused_not_asked_about(folder, monkeypatch):
    place = folder(eos_token=None, tokenizer_class="Mine", auto_map={"AutoTokenizer": ["mine.Mine", "mine.Mine"]})
    (place / "mine.py").write_text(f"open({str(place / 'it-ran')!r}, 'w')\nclass Mine: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(UserError, match="can't be opened"):
        read(place)
    assert not (place / "it-ran").exists()
