"""What a reply is worth to who learns from rewards: verifiers of the project's own, weighed by params.

A reply that was cut off, says nothing, answers twice or goes on as somebody else is worth 0, whatever the weights:
each of these is a way to be paid without having answered.
"""

import math
from typing import NamedTuple

import numpy as np
from pydantic import NonNegativeFloat, model_validator

from stages.lib.frame.params import Params
from stages.lib.store.records import Record
from stages.lib.text import problems


class Reply(NamedTuple):
    text: str
    tokens: int  # with the stop
    stopped: bool  # by the model itself, within its room
    alone: bool  # no control token in it but the stop


class Worth(NamedTuple):
    reward: float
    right: bool  # in full, and honestly


class Rewards(Params):
    """Weights; each part is in [0, 1]. `random` alone is the control of any study: what it teaches is not the task."""

    correct: NonNegativeFloat = 1.0  # by the problem's own scorer, in full: with the mark where it wants one
    lenient: NonNegativeFloat = 0.0  # the same, or its last line or word is right, mark or not
    format: NonNegativeFloat = 0.0  # ends in an answer behind the mark, right or wrong
    short: NonNegativeFloat = 0.0  # the share of its room that a right reply leaves
    random: NonNegativeFloat = 0.0  # a coin
    model: NonNegativeFloat = 0.0  # how likely a reward model prefers it to a reply of score 0
    judge: NonNegativeFloat = 0.0  # a judge's grade

    @model_validator(mode="after")
    def rewarded(self) -> "Rewards":
        if not any(self.model_dump().values()):
            raise ValueError("all weights are 0, so every reply is worth the same: give one of them")
        return self

    def of(
        self,
        problem: Record,
        reply: Reply,
        room: int,
        dice: np.random.Generator,
        score: float = 0.0,
        grade: float = 0.0,
    ) -> Worth:
        """Of a reply that might have had `room` tokens; `score` is a reward model's word, `grade` a judge's."""
        coin = float(dice.random() < 0.5)  # drawn for every reply, so that no other weight moves it
        if not honest(reply):
            return Worth(0.0, False)
        right = problems.correct(problem, reply.text)
        parts = {
            "correct": float(right),
            "lenient": float(problems.lenient(problem, reply.text)),
            "format": float(bool(problems.extract(reply.text))),
            "short": right * (1 - reply.tokens / room),
            "random": coin,
            "model": 1 / (1 + math.exp(-score)),
            "judge": grade,
        }
        return Worth(sum(getattr(self, name) * value for name, value in parts.items()), right)


def honest(reply: Reply) -> bool:
    """Whether a reply may be worth anything."""
    return reply.stopped and reply.alone and bool(reply.text.strip()) and reply.text.count(problems.MARK) <= 1
