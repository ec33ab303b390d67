"""The tokenizer that comes with somebody else's model: a hub id, a local folder, or a GGUF file."""

from collections.abc import Iterable
from typing import Literal

from stages.lib.hub import External, fetch
from stages.tokenize import Tokenization


class Params(Tokenization):
    method: Literal["pretrained"]
    external: External


def train(_texts: Iterable[str], p: Params):
    from transformers import AutoTokenizer

    folder, arguments = fetch(p.external)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **arguments)
    if not tokenizer.chat_template:
        raise SystemExit(f"{p.external.source} has no chat template: problems cannot be put to it")
    return tokenizer
