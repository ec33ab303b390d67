"""Unigram language model over subwords, trained by SentencePiece. Kudo 2018, arXiv:1804.10959; arXiv:1808.06226.

Text is bytes first (the GPT-2 alphabet), so no string is unknown and decode(encode(text)) == text; digits stand alone.
SentencePiece and not the trainer of tokenizers, which gives another vocabulary on every run.
"""

import io
from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stages.tokenize import Tokenization

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Unigram(Tokenization):
    method: Literal["unigram"]
    vocab_size: int = Field(2048, ge=512, le=65_536)

    def train(self, texts: Iterable[str]) -> "PreTrainedTokenizerFast":
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        from stages.tokenize.parts import special_tokens

        split = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        words = (word for text in texts for word, _ in split.pre_tokenize_str(text))
        special = [(token, 0.0) for token in special_tokens.SPECIAL]
        learnt = pieces(words, self.vocab_size - len(special), pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.Unigram(special + learnt, unk_id=0))
        tokenizer.pre_tokenizer = split
        tokenizer.decoder = decoders.ByteLevel()
        return special_tokens.finish(tokenizer)


def pieces(words: Iterable[str], count: int, alphabet: Iterable[str]) -> list[tuple[str, float]]:
    """Subwords with their log-probabilities; every letter of the alphabet is one of them."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=chain(words, sorted(alphabet)),
        model_writer=model,
        model_type="unigram",
        vocab_size=count + 1,  # and the unknown piece, which cannot be switched off
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        split_by_unicode_script=False,
        split_by_number=False,
        bos_id=-1,
        eos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [(trained.id_to_piece(i), trained.get_score(i)) for i in range(1, trained.get_piece_size())]
