"""Tokenize: documents and problems in, a tokenizer and packed token rows out.

In   documents, problems (record artefacts)
Out  tokenizer (Hugging Face layout, with chat template), tokens (see stages/lib/store/tokens.py);
     metrics: vocab_size, bytes_per_token, train_tokens, held_out_tokens

Whatever the technique, decode(encode(text)) == text for every string.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt

from stages.lib.frame.params import Records, Share, Variant

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Tokenization(Variant, ABC):
    """The contract of a technique."""

    documents: Records
    problems: Records
    context: int = Field(256, ge=16)  # tokens a row
    sample_bytes: PositiveInt | None = 4_000_000  # of text to learn the vocabulary from; None where it is given
    train_tokens: PositiveInt = 2_000_000  # rows are cut from a shuffled mixture until this many tokens are packed
    held_out_tokens: PositiveInt = 50_000
    problem_share: Share = 0.5  # of the tokens; the rest are documents
    seed: int = 0

    @abstractmethod
    def train(self, texts: Iterable[str]) -> "PreTrainedTokenizerFast":
        """The tokenizer, its vocabulary learnt from the texts; with a chat template."""
