"""Unigram language model over subwords, as in SentencePiece. Kudo 2018, arXiv:1804.10959; arXiv:1808.06226.

Text is bytes first (the GPT-2 alphabet), so no string is unknown and decode(encode(text)) == text; digits stand alone.
"""

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from stages.tokenize import Tokenization


class Params(Tokenization):
    method: Literal["unigram"]
    vocab_size: int = Field(2048, ge=512, le=65_536)


def train(texts: Iterable[str], p: Params):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from stages.tokenize import _special

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.UnigramTrainer(
        vocab_size=p.vocab_size,
        special_tokens=_special.SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        unk_token=_special.PAD,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _special.finish(tokenizer)
