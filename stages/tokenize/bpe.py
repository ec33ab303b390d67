"""Byte-level BPE. Sennrich et al. 2015, arXiv:1508.07909; bytes as alphabet: Radford et al. 2019 (GPT-2).

Every digit is a token of its own, as in SmolLM (arXiv:2502.02737): arithmetic is learnt digit by digit, and llama.cpp
knows this splitting as pre-tokenizer "smollm".
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stages.tokenize import Tokenization

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class BPE(Tokenization):
    method: Literal["bpe"]
    vocab_size: int = Field(2048, ge=512, le=65_536)

    def train(self, texts: Iterable[str]) -> "PreTrainedTokenizerFast":
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        from stages.tokenize.parts import special_tokens

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=special_tokens.SPECIAL,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return special_tokens.finish(tokenizer)
