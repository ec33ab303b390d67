"""A judge's word on single replies: the grade that a model behind an OpenAI-compatible endpoint gives each. Zheng et
al. 2023, arXiv:2306.05685, section 3.1.

A judge may like length or its own kind, and a reply may tell it what to say, so what it pays for is not the task: look
at `right` beside `reward`. A key for the endpoint comes from the environment variable ORCHARD_API_KEY.
"""

import re
from collections.abc import Sequence

from pydantic import PositiveInt

from stages.lib.frame.errors import UserError
from stages.lib.sampling.endpoint import Client, Service

QUESTION = """Grade an assistant's answer. What counts: {wanted}

[What was asked]
{asked}

[Answer]
{answer}

[Your grade]
One number from 1, the worst, to 10, the best, and nothing else."""
GRADE = re.compile(r"(?<![\d.,-])(10|[1-9])(?!\d)")
WORST, BEST = 1, 10


class Judge(Service):
    """The judge, and how it is asked."""

    wanted: str = "it is correct, and of help to the person."  # what it shall look at
    grade_tokens: PositiveInt = 16  # more for a judge that thinks first

    def grades(self, client: Client, replies: Sequence[tuple[str, str]]) -> list[float]:
        """Of every (question, answer), in [0, 1]; where the judge says no grade it is the worst one."""
        shown = [QUESTION.format(wanted=self.wanted, asked=asked, answer=answer) for asked, answer in replies]
        sampling = {"max_tokens": self.grade_tokens, "temperature": 0.0}
        said = [each["text"] for each in client.ask(shown, **sampling)]
        read = [grade(each) for each in said]
        if said and not any(read):
            client.forget(shown, **sampling)
            raise UserError(f"{self.url} says no number from {WORST} to {BEST}, but for example {said[0]!r:.80}")
        return [((each or WORST) - WORST) / (BEST - WORST) for each in read]


def grade(said: str) -> int | None:
    """The first number in a judge's last line."""
    found = GRADE.search(said.strip().rpartition("\n")[2])
    return int(found[1]) if found else None
