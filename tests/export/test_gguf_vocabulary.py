"""Token ids in llama.cpp against those of transformers, out to GGUF and in from GGUF, and SentencePiece's own."""

import io

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stages.export.parts import gguf_vocabulary
from stages.lib.frame.errors import UserError
from stages.lib.runtimes import libllama
from stages.lib.text import splittings
from stages.tokenize.parts import gguf_tokenizer, special_tokens

PARIS = "The capital of France is Paris."


def file_of(vocabulary, file):
    """A llama of one layer, of zeros, with this vocabulary."""
    rows, width = len(vocabulary["tokens"]), 32
    writer = gguf.GGUFWriter(file, "llama")
    for name, value in {"context_length": 64, "embedding_length": width, "block_count": 1}.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_feed_forward_length(width)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    gguf_vocabulary.add(writer, vocabulary)
    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes = {"token_embd": (rows, width), "output_norm": (width,)}
    shapes |= {f"blk.0.{name}": (width, width) for name in square}
    shapes |= {f"blk.0.{name}": (width,) for name in ("attn_norm", "ffn_norm")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def ids_alike(tokenizer, file, texts):
    model = libllama.Model(str(file))
    for text in texts:
        assert model.tokenize(text) == tokenizer.encode(text, add_special_tokens=False), text
    model.close()


def byte_level(texts, pre_tokenizer, ignore_merges=False):
    bpe = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizer, decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=special_tokens.SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([*texts, *splittings.HARD * 3], trainer)
    return special_tokens.finish(bpe)


@pytest.mark.parametrize("name", splittings.SPLITTINGS)
def test_a_way_to_cut_text_is_known_by_what_it_does_and_llama_cpp_does_the_same(name, texts, tmp_path):
    """On a vocabulary whose merges cross what other ways would cut: it was trained on the hard texts."""
    tokenizer = byte_level(texts, splittings.pre_tokenizer(name), splittings.SPLITTINGS[name].ignore_merges)
    vocabulary = gguf_vocabulary.read(tokenizer, len(tokenizer) + 8) | {"name": "x"}
    assert (vocabulary["model"], vocabulary["pre"]) == ("gpt2", name)
    file = file_of(vocabulary, tmp_path / "model.gguf")
    gguf_vocabulary.check(tokenizer, file)
    ids_alike(tokenizer, file, texts)
    again = gguf_tokenizer.read(file, "model.gguf")
    ids_alike(again, file, [*texts[:5], *splittings.HARD])
    assert (again.bos_token, again.eos_token, again.pad_token) == ("<|bos|>", "<|end|>", "<|pad|>")


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no prefix"])
def sentencepiece(request, texts):
    """SentencePiece's own program, its pieces as a GGUF file has them, whether it writes a space before a text."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts, PARIS]), model_writer=model, model_type="bpe", vocab_size=900,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=request.param, minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()), request.param


@pytest.fixture
def spm_file(sentencepiece, tmp_path):
    processor, prefix = sentencepiece
    pieces = range(processor.get_piece_size())
    types = [
        gguf_vocabulary.BYTE
        if processor.is_byte(i)
        else gguf_vocabulary.UNKNOWN
        if processor.is_unknown(i)
        else gguf_vocabulary.CONTROL
        if processor.is_control(i)
        else gguf_vocabulary.NORMAL
        for i in pieces
    ]
    return file_of(
        {
            "model": "llama", "pre": "default", "tokens": [processor.id_to_piece(i) for i in pieces], "types": types,
            "scores": [processor.get_score(i) for i in pieces], "add_space_prefix": prefix, "add_bos": True,
            "add_eos": False, "special": {"bos": 1, "eos": 2, "unk": 0}, "chat_template": None,
        },
        tmp_path / "spm.gguf",
    )  # fmt: skip


def test_sentencepiece_is_read_as_it_is(sentencepiece, spm_file, texts, tmp_path):
    """Three programs: SentencePiece, transformers with what was read, also after saving, and llama.cpp."""
    processor, _ = sentencepiece
    gguf_tokenizer.read(spm_file, "spm.gguf").save_pretrained(tmp_path / "saved")
    for tokenizer in (gguf_tokenizer.read(spm_file, "spm.gguf"), AutoTokenizer.from_pretrained(tmp_path / "saved")):
        ids_alike(tokenizer, spm_file, [*texts, *splittings.HARD, PARIS])
        for text in [*texts, *splittings.HARD, PARIS]:
            assert tokenizer.encode(text, add_special_tokens=False) == processor.encode(text), text
            assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
        assert tokenizer.encode(PARIS)[0] == tokenizer.bos_token_id == 1


def test_sentencepiece_is_written_as_it_was_read(spm_file, texts, tmp_path):
    tokenizer = gguf_tokenizer.read(spm_file, "spm.gguf")
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}{{ messages[-1]['content'] }}{{ eos_token }}"
    vocabulary = gguf_vocabulary.read(tokenizer, len(tokenizer))
    assert (vocabulary["add_bos"], vocabulary["add_eos"]) == (True, False)
    file = file_of(vocabulary, tmp_path / "again.gguf")
    gguf_vocabulary.check(tokenizer, file)
    ids_alike(tokenizer, file, texts)


def test_another_way_to_cut_text_is_refused_by_the_first_text(texts, tmp_path):
    tokenizer = byte_level(texts, splittings.pre_tokenizer("qwen2"))
    vocabulary = gguf_vocabulary.read(tokenizer, len(tokenizer)) | {"pre": "gpt-2"}
    with pytest.raises(UserError, match="llama.cpp would read .* otherwise than the tokenizer: .*, not .*: choose"):
        gguf_vocabulary.check(tokenizer, file_of(vocabulary, tmp_path / "model.gguf"))


def test_other_tokenizers_are_refused(texts):
    unigram = Tokenizer(models.Unigram([("a", -1.0), ("b", -0.7)], None, False))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    whitespace = byte_level(texts, pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel()]))
    for tokenizer, kind in (
        (PreTrainedTokenizerFast(tokenizer_object=unigram), r"Unigram \+ Metaspace"),
        (whitespace, r"BPE \+ Whitespace \+ ByteLevel"),
    ):
        with pytest.raises(UserError, match=f"gpt-2, smollm, llama-bpe.*not the tokenizer {kind}: choose"):
            gguf_vocabulary.read(tokenizer, len(tokenizer))


def test_a_file_with_another_tokenizer_is_named(tokenizer, tmp_path):
    vocabulary = gguf_vocabulary.read(tokenizer, len(tokenizer))
    for changed, message in (({"pre": "viking"}, "splits text as 'viking'; known"), ({"model": "rwkv"}, "kind 'rwkv'")):
        file = file_of(vocabulary, tmp_path / "model.gguf")
        writer_of = gguf_tokenizer.contents(file) | changed
        with pytest.raises(UserError, match=f"its.gguf .*{message}"):
            read = gguf_tokenizer.byte_level if "pre" in changed else gguf_tokenizer.sentence_piece
            read(writer_of, "its.gguf")
