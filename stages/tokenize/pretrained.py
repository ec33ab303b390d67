"""The tokenizer that comes with somebody else's model: a hub id, a local folder, or a GGUF file.

Byte-level BPE is read from a GGUF file here: transformers' reader takes BOS for EOS, keeps numbers whole and drops
spaces before punctuation. The splittings are those that llama.cpp calls by these names.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stages.lib.frame.errors import UserError
from stages.lib.store.hub import External, fetch
from stages.tokenize import Tokenization

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPLITTINGS = ("gpt-2", "smollm")  # smollm: every digit apart, then as gpt-2
CONTROL, USER_DEFINED = 3, 4  # llama.cpp's token types
SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding"}  # here, in the file


class Pretrained(Tokenization):
    method: Literal["pretrained"]
    external: External
    sample_bytes: None = None

    def train(self, texts: Iterable[str]) -> "PreTrainedTokenizerFast":
        from transformers import AutoTokenizer

        folder, arguments = fetch(self.external)
        inside = contents(folder / arguments["gguf_file"]) if arguments else {}
        if inside.get("model") == "gpt2":
            tokenizer = byte_level(inside, self.external.source)
        else:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **arguments)
        if not tokenizer.chat_template:
            raise UserError(f"{self.external.source} has no chat template: problems cannot be put to it")
        return tokenizer


def contents(file: Path) -> dict[str, Any]:
    """What a GGUF file says of its tokenizer: model, pre, tokens, token_type, merges, *_token_id, chat_template."""
    import gguf

    fields = gguf.GGUFReader(file).fields
    names = [name for name in fields if name.startswith("tokenizer.")]
    return {name.removeprefix("tokenizer.").removeprefix("ggml."): fields[name].contents() for name in names}


def byte_level(inside: dict[str, Any], source: str) -> "PreTrainedTokenizerFast":
    """The tokenizer that a GGUF file describes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if (name := inside.get("pre")) not in SPLITTINGS:
        raise UserError(f"{source} splits text as '{name}'; known are: {', '.join(SPLITTINGS)}")
    tokens, merges = inside["tokens"], [tuple(merge.split(" ")) for merge in inside["merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    digits = [pre_tokenizers.Digits(individual_digits=True)] if name == "smollm" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, inside["token_type"], strict=True):
        if kind in (CONTROL, USER_DEFINED):
            tokenizer.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False)])
    ids = {mine: inside.get(f"{theirs}_token_id") for mine, theirs in SPECIAL.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=inside.get("chat_template"),
        clean_up_tokenization_spaces=False,
        **{f"{mine}_token": tokens[i] for mine, i in ids.items() if i is not None},
    )
