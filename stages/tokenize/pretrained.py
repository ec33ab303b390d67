"""The tokenizer that comes with somebody else's model: a hub id, a local folder, or a GGUF file."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from stages.lib.frame.errors import UserError
from stages.lib.store.hub import External, fetch
from stages.tokenize import Tokenization
from stages.tokenize.parts import gguf_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Pretrained(Tokenization):
    method: Literal["pretrained"]
    external: External
    sample_bytes: None = None

    def train(self, texts: Iterable[str]) -> "PreTrainedTokenizerFast":
        from transformers import AutoTokenizer

        folder, arguments = fetch(self.external)
        if arguments:
            tokenizer = gguf_tokenizer.read(folder / arguments["gguf_file"], self.external.source)
        else:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if not tokenizer.chat_template:
            raise UserError(f"{self.external.source} has no chat template: problems cannot be put to it")
        return tokenizer
