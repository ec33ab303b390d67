"""Tokenize: documents and problems in, a tokenizer and packed token rows out.

In   documents, problems (record artefacts)
Out  tokenizer (Hugging Face layout, with chat template), tokens (see stages/lib/store/tokens.py);
     metrics: vocab_size, bytes_per_token

A technique is one file here. It defines `Params` and `train(texts, params) -> PreTrainedTokenizerFast`; whatever the
algorithm, decode(encode(text)) == text for every string.
"""

from pydantic import Field, PositiveInt

from stages.lib.frame.params import Parent, Share, Variant


class Tokenization(Variant):
    """What every technique's variants share."""

    documents: Parent
    problems: Parent
    context: int = Field(256, ge=16)  # tokens a row
    sample_bytes: PositiveInt = 4_000_000  # of text, from which the vocabulary is learnt
    train_tokens: PositiveInt = 2_000_000  # rows are cut from a shuffled mixture until this many tokens are packed
    held_out_tokens: PositiveInt = 50_000
    problem_share: Share = 0.5  # of the training tokens; the rest are documents
    seed: int = 0
