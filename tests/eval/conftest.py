"""Held-out records and the two extremes of a model: one that knows nothing, one that knows every answer."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def documents(texts):
    return [{"id": str(n), "source": "moby-dick", "text": text} for n, text in enumerate(texts)]


@pytest.fixture(scope="session")
def problems():
    from reasoning_gym import create_dataset

    return [
        {
            "id": f"{family}-{number}",
            "family": family,
            "prompt": entry["question"],
            "answer": str(entry["answer"]),
            "solution": f"It is so.\n#### {entry['answer']}",
            "entry": entry,
        }
        for family in ("chain_sum", "gcd", "spell_backward")
        for number, entry in enumerate(create_dataset(family, size=5, seed=1))
    ]


@pytest.fixture(scope="session")
def ignorant(model_folder):
    """A model as it is before training."""
    from stages.lib.runtimes.open import open_runtime

    return open_runtime(model_folder)


class Oracle:
    """Writes the solution of every problem it was given; is certain of every next token, and right."""

    def __init__(self, tokenizer, problems):
        from stages.lib.text.chat import prompt_ids

        self.tokenizer = tokenizer
        self.solutions = {
            tuple(prompt_ids(tokenizer, row["prompt"])): tokenizer.encode(row["solution"]) for row in problems
        }

    def logits(self, ids):
        logits_TV = np.zeros((len(ids), len(self.tokenizer)), dtype=np.float32)
        logits_TV[np.arange(len(ids) - 1), ids[1:]] = 1e4
        return logits_TV

    def generate(self, prompts, max_new_tokens, stops=(), temperature=0, seed=0):
        return [self.solutions.get(tuple(prompt), [])[:max_new_tokens] for prompt in prompts]


@pytest.fixture
def oracle(tokenizer, problems):
    return Oracle(tokenizer, problems)
