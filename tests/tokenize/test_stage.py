"""The mixture of rows: which share of the tokens are problems, how many there are, and in which order."""

import numpy as np
import pytest

from stages.tokenize import __main__ as stage
from stages.tokenize.bpe import BPE

CONTEXT, BUDGET = 32, 8000


def technique(**more):
    return BPE(method="bpe", documents="data/a", problems="data/b", vocab_size=512, context=CONTEXT, **more)


@pytest.fixture(scope="module")
def solved():
    return [{"prompt": f"Say {n} and {n * n}.", "solution": f"{n} * {n}\n#### {n * n}"} for n in range(800)]


def is_problem(tokenizer, rows):
    """Whether a row holds a mark of a chat: no document does, and no turn of these problems is as long as a row."""
    marks = tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>", "<|end|>"])
    return np.isin(rows, marks).any(axis=1)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7, 0.9])
def test_problems_are_the_share_of_the_tokens_that_was_asked_for(share, tokenizer, texts, solved):
    rows = stage.mix(tokenizer, texts, solved, BUDGET, technique(problem_share=share))
    problems = is_problem(tokenizer, rows).sum()
    assert problems == round(BUDGET * share) // CONTEXT
    assert len(rows) - problems == (BUDGET - problems * CONTEXT) // CONTEXT


def test_documents_fill_up_where_problems_run_out(tokenizer, texts, solved):
    rows = stage.mix(tokenizer, texts, solved[:20], BUDGET, technique(problem_share=0.9))
    assert 0 < is_problem(tokenizer, rows).sum() < 30
    assert rows.size == BUDGET // CONTEXT * CONTEXT


def test_the_seed_is_the_order(tokenizer, texts, solved):
    one, same, other = (stage.mix(tokenizer, texts, solved, BUDGET, technique(seed=seed)) for seed in (0, 0, 1))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_no_row_of_one_kind_is_no_row_at_all(tokenizer, texts, solved):
    assert not len(stage.mix(tokenizer, texts, solved[:1], BUDGET, technique()))


def test_the_vocabulary_is_learnt_from_both_halves_and_no_more_text_than_asked_for(texts, solved):
    sample = list(stage.sample(texts, solved, 10_000, seed=0))
    problems = {f"{row['prompt']}\n{row['solution']}" for row in solved}
    of_problems = [text for text in sample if any(text == problem[: len(text)] for problem in problems)]
    assert sum(map(len, of_problems)) == 5000 and sum(map(len, sample)) == 10_000
    assert not list(stage.sample(texts, solved, 0, seed=0))  # nothing for a vocabulary that is given
