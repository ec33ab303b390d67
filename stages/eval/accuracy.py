"""Accuracy: the share of held-out problems that the model answers right, greedily, through its chat template.

Right means full marks from the problem's own scorer. Intervals: Wilson 1927, JASA 22(158), 95 %: with z = 1.96,

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

`accuracy` is the mean over problems, `accuracy_macro` over families, `right` the mark of every problem. Cost: up to
max_new_tokens steps a problem.
"""

from collections import defaultdict
from math import sqrt
from statistics import NormalDist, mean
from typing import Any

from pydantic import PositiveInt

from stages.eval.parts import held_out
from stages.lib.frame import params
from stages.lib.runtimes.base import Runtime
from stages.lib.store import records
from stages.lib.text import problems

REPEATABLE = True
Z = NormalDist().inv_cdf(0.975)


class Params(params.Params):
    per_family: PositiveInt = 24
    max_new_tokens: PositiveInt = 128


def score(runtime: Runtime, data: held_out.HeldOut, p: Params) -> dict[str, Any]:
    asked = held_out.per_family(data.problems, p.per_family)
    right = [problems.correct(row, text) for row, text in zip(asked, answer(runtime, asked, p), strict=True)]
    families = defaultdict(list)
    for row, mark in zip(asked, right, strict=True):
        families[row["family"]].append(mark)

    metrics: dict[str, Any] = summary(right) | {"accuracy_macro": mean(mean(marks) for marks in families.values())}
    for family, marks in families.items():
        metrics |= {f"{key}.{family}": value for key, value in summary(marks).items()}
    return metrics | {"right": {row["id"]: mark for row, mark in zip(asked, right, strict=True)}}


def answer(runtime: Runtime, asked: list[records.Record], p: Params) -> list[str]:
    """The model's greedy answers, without special tokens."""
    tokenizer = runtime.tokenizer
    prompts = [problems.prompt_ids(tokenizer, row["prompt"]) for row in asked]
    answers = runtime.generate(prompts, p.max_new_tokens, tokenizer.eos_token_id)
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]


def summary(right: list[bool]) -> dict[str, float]:
    low, high = wilson(sum(right), len(right))
    return {"accuracy": mean(right), "accuracy_low": low, "accuracy_high": high, "num_problems": len(right)}


def wilson(right: int, number: int) -> tuple[float, float]:
    """The interval that holds the true rate in 95 of 100 cases; sensible also at 0 and 1 and for few problems."""
    rate, scale = right / number, 1 + Z**2 / number
    centre = rate + Z**2 / (2 * number)
    half = Z * sqrt(rate * (1 - rate) / number + Z**2 / (4 * number**2))
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
