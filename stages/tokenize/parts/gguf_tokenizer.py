"""The tokenizer that a GGUF file describes, read as llama.cpp reads it: byte-level BPE ("gpt2") and SentencePiece
("llama"). transformers' own reader takes BOS for EOS, keeps numbers whole, drops spaces before punctuation, and gives
SentencePiece other ids.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.lib.frame.errors import UserError
from stages.lib.text import splittings

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # llama.cpp's token types
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # here, in the file
SPACE = "▁"


def read(file: Path, source: str) -> "PreTrainedTokenizerFast":
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    inside = contents(file)
    tokenizer = byte_level(inside, source) if inside.get("model") == "gpt2" else sentence_piece(inside, source)
    tokens, ids = inside["tokens"], {mine: inside.get(f"{theirs}_token_id") for mine, theirs in SPECIAL.items()}
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in zip(tokens, inside["token_type"], strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]
    )
    frame(tokenizer, inside)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=inside.get("chat_template"),
        clean_up_tokenization_spaces=False,
        **{f"{mine}_token": tokens[i] for mine, i in ids.items() if i is not None},
    )


def contents(file: Path) -> dict[str, Any]:
    """What the file says of it: model, pre, tokens, token_type, merges, scores, *_token_id, chat_template."""
    import gguf

    fields = gguf.GGUFReader(file).fields
    names = [name for name in fields if name.startswith("tokenizer.")]
    return {name.removeprefix("tokenizer.").removeprefix("ggml."): fields[name].contents() for name in names}


def byte_level(inside: dict[str, Any], source: str) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models

    name = splittings.SAME.get(inside.get("pre", ""), inside.get("pre"))
    if name not in splittings.SPLITTINGS:
        known = ", ".join([*splittings.SPLITTINGS, *splittings.SAME])
        raise UserError(f"{source} splits text as '{name}'; known are: {known}")
    vocabulary = {token: i for i, token in enumerate(inside["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in inside["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=splittings.SPLITTINGS[name].ignore_merges))
    tokenizer.pre_tokenizer = splittings.pre_tokenizer(name)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentence_piece(inside: dict[str, Any], source: str) -> "Tokenizer":
    """llama.cpp joins the two neighbours whose token has the highest score; here a merge is the earlier, the higher."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    if inside.get("model") != "llama":
        kind = inside.get("model")
        raise UserError(
            f"{source} has a tokenizer of the kind '{kind}'; known are gpt2 (BPE) and llama (SentencePiece)"
        )
    tokens = inside["tokens"]
    vocabulary, unknown = {token: i for i, token in enumerate(tokens)}, inside.get("unknown_token_id")
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            merges(inside, vocabulary),
            unk_token=None if unknown is None else tokens[unknown],
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    prefixed = inside.get("add_space_prefix", True)
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefixed else spaces
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def merges(inside: dict[str, Any], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of tokens that together are one, by the score of what they become."""
    words = [token for token, kind in zip(inside["tokens"], inside["token_type"], strict=True) if kind == NORMAL]
    words.sort(key=lambda word: -inside["scores"][vocabulary[word]])
    pairs = ((word[:cut], word[cut:]) for word in words for cut in range(1, len(word)))
    return [(left, right) for left, right in pairs if left in vocabulary and right in vocabulary]


def frame(tokenizer: "Tokenizer", inside: dict[str, Any]) -> None:
    """BOS and EOS around a text that asks for them."""
    from tokenizers.processors import TemplateProcessing

    around = {name: inside.get(f"add_{name}_token", False) for name in ("bos", "eos")}
    special = {name: inside["tokens"][inside[f"{name}_token_id"]] for name, asked in around.items() if asked}
    if special:
        before, after = special.get("bos", ""), special.get("eos", "")
        tokenizer.post_processor = TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single=f"{before} $A {after}".strip(),
            special_tokens=[(token, inside[f"{name}_token_id"]) for name, token in special.items()],
        )
