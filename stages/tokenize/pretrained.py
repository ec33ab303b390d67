"""The tokenizer that comes with somebody else's model: a hub id, a local folder, or a GGUF file.

Byte-level BPE is read from a GGUF file here: transformers' reader takes BOS for EOS, keeps numbers whole and drops
spaces before punctuation. The splittings are those that llama.cpp calls by these names.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stages.lib.frame.errors import UserError
from stages.lib.store import loading
from stages.lib.store.hub import External, LocalFile, fetch
from stages.lib.text import chat, templates
from stages.tokenize import Tokenization
from stages.tokenize.parts import foreign

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPLITTINGS = ("gpt-2", "smollm")  # smollm: every digit apart, then as gpt-2
CONTROL, USER_DEFINED = 3, 4  # llama.cpp's token types
SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding"}  # here, in the file


class Pretrained(Tokenization):
    method: Literal["pretrained"]
    external: External
    sample_bytes: None = None

    chat_template: Literal["chatml", "plain"] | LocalFile | None = None  # None: its own, or one that its tokens allow

    def train(self, texts: Iterable[str]) -> "PreTrainedTokenizerFast":
        folder, arguments = fetch(self.external)
        source = self.external.source
        tokenizer = read_gguf(folder / arguments["gguf_file"], source) if arguments else foreign.load(folder, source)
        tokenizer.chat_template, whose = self.template(tokenizer)
        try:
            stops = [str(tokenizer.convert_ids_to_tokens(token)) for token in chat.stops(tokenizer)]
        except UserError as error:
            raise UserError(f"{source}: {error}") from error
        print(f"{source}: {len(tokenizer):,} tokens, {whose} chat template, an answer ends at {' or '.join(stops)}")
        return tokenizer

    def template(self, tokenizer: "PreTrainedTokenizerFast") -> tuple[str, str]:
        """The chat template, and whose it is."""
        own: Any = tokenizer.chat_template
        if isinstance(self.chat_template, LocalFile):
            return Path(self.chat_template.source).read_text(), "given"
        if self.chat_template is None and own:
            if isinstance(own, str):
                return own, "its own"
            if "default" not in own:
                named = f"its chat templates are {', '.join(own)}, none of them 'default'"
                raise UserError(f"{self.external.source}: {named}; give one as `chat_template`")
            return own["default"], "its own default"
        name = self.chat_template or templates.fitting(tokenizer)
        if lacking := templates.lacking(tokenizer, name):
            raise UserError(f"{self.external.source}: chat_template {name} needs the control token {lacking[0]}")
        return templates.write(tokenizer, name), f"Orchard's {name}"


def read_gguf(file: Path, source: str) -> "PreTrainedTokenizerFast":
    from transformers import AutoTokenizer

    inside = contents(file)
    if inside.get("model") == "gpt2":
        return byte_level(inside, source)
    with loading.opening(source):
        return AutoTokenizer.from_pretrained(file.parent, local_files_only=True, gguf_file=file.name)


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
