"""The tokenizer that comes with somebody else's model: a hub id, a local folder, or a GGUF file."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stages.lib.frame.errors import UserError
from stages.lib.store.hub import External, LocalFile, fetch
from stages.lib.text import chat, templates
from stages.tokenize import Tokenization
from stages.tokenize.parts import foreign, gguf_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Pretrained(Tokenization):
    method: Literal["pretrained"]
    external: External
    sample_bytes: None = None

    chat_template: Literal["chatml", "plain"] | LocalFile | None = None  # None: its own, or one that its tokens allow

    def train(self, texts: Iterable[str]) -> "PreTrainedTokenizerFast":
        folder, arguments = fetch(self.external)
        source = self.external.source
        if arguments:
            tokenizer = gguf_tokenizer.read(folder / arguments["gguf_file"], source)
        else:
            tokenizer = foreign.load(folder, source)
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
