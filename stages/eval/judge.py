"""Judge: how often a model behind an OpenAI-compatible endpoint likes the answers better than those of a reference.

    win_rate = (wins + ties / 2) / questions

A judge has a liking for the answer that stands first, so each pair is shown in both orders: what is preferred twice
wins, all else is a tie (Zheng et al. 2023, arXiv:2306.05685, section 3.4). Equal answers are a tie that nobody is asked
about. A judge may also like its own kind, or length: its figures hold for it alone. The interval is Wilson's, 95 %,
which ties only make too wide. Samples: every question with both answers and the verdict.

Only the models under its own `models` are judged. Cost: two requests a question, at most. A key for the endpoint comes
from the environment variable ORCHARD_API_KEY.
"""

import re
from pathlib import Path
from typing import Any

from pydantic import PositiveInt, model_validator

from stages.eval import Beside, Measure, Scores
from stages.eval.parts.answers import first_of_each_family, greedy
from stages.eval.parts.intervals import wilson
from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Model
from stages.lib.frame.params import Records as Source
from stages.lib.runtimes.open import open_runtime
from stages.lib.sampling.endpoint import Client, Service
from stages.lib.store.records import Record
from stages.lib.text import chat

QUESTION = """Two assistants were asked the same. Whose answer is better: more correct, and of more help to the person?
Neither length nor order counts.

[What was asked]
{asked}

[Answer A]
{first}

[Answer B]
{second}

[Your verdict]
One letter and nothing else: A or B, or C if neither is better."""
VERDICT = re.compile(r"\b([ABC])\b")
POINTS = {"win": 1.0, "tie": 0.5, "loss": 0.0}


class Asked(Service):
    """The judge, and about what it is asked."""

    per_family: PositiveInt = 24  # questions
    max_new_tokens: PositiveInt = 256  # of an answer
    verdict_tokens: PositiveInt = 16  # more for a judge that thinks first


class Judge(Measure):
    records: Source | None = None
    models: dict[str, Model] = {}  # some of eval.models
    against: Model | None = None  # the reference
    asked: Asked | None = None

    @model_validator(mode="after")
    def ready(self) -> "Judge":
        if self.models and (missing := [key for key in ("records", "against", "asked") if getattr(self, key) is None]):
            raise ValueError(f"{missing[0]} is missing: `models` are judged on `records`, beside `against`, as `asked`")
        return self

    def evaluate(self, model: Path, records: list[Record], beside: Beside | None = None) -> Scores:
        assert self.asked and beside, "the stage gives a reference"
        problems = first_of_each_family(records, self.asked.per_family, "judge")
        own, theirs = (
            greedy(open_runtime(each), problems, self.asked.max_new_tokens) for each in (model, beside.reference)
        )
        return self.judged(problems, own, theirs, beside.place)

    def judged(self, problems: list[Record], own: list[str], theirs: list[str], place: Path) -> Scores:
        """The scores of a model's answers beside those of the reference."""
        p = self.asked
        assert p
        client = Client(p, place)
        rows = list(zip((chat.plain(problem["prompt"]) for problem in problems), own, theirs, strict=True))
        shown = [pair for asked, one, other in rows if one != other for pair in both(asked, one, other)]
        sampling = {"max_tokens": p.verdict_tokens, "temperature": 0.0}
        replies = client.ask(shown, **sampling) if shown else []
        said = dict(zip(shown, (letter(reply["text"]) for reply in replies), strict=True))
        if shown and not any(said.values()):
            client.forget(shown, **sampling)
            raise UserError(f"eval.judge: {p.url} never says A, B or C, but for example {replies[0]['text']!r:.80}")
        verdicts = ["tie" if row[1] == row[2] else verdict(*(said[pair] for pair in both(*row))) for row in rows]
        rate = sum(POINTS[each] for each in verdicts) / len(verdicts)
        low, high = wilson(rate * len(verdicts), len(verdicts))
        metrics = {"win_rate": rate, "win_rate_low": low, "win_rate_high": high}
        metrics |= {f"judge.{each}": float(verdicts.count(each)) for each in POINTS}
        metrics["judge.unread"] = float(sum(each is None for each in said.values()))
        metrics |= {f"judge.{name}": value for name, value in client.spent().items()}
        return Scores(metrics, samples={"judged": [sample(*each) for each in zip(rows, verdicts, strict=True)]})


def both(asked: str, own: str, theirs: str) -> list[str]:
    """What the judge reads, with the model's answer in front and behind."""
    pairs = ((own, theirs), (theirs, own))
    return [QUESTION.format(asked=asked, first=first, second=second) for first, second in pairs]


def letter(said: str) -> str | None:
    """The verdict in a judge's words: the only one of the letters in its last line."""
    found = set(VERDICT.findall(said.strip().rpartition("\n")[2]))
    return found.pop() if len(found) == 1 else None


def verdict(in_front: str | None, behind: str | None) -> str:
    """Of the letters where the model's answer was A, and where it was B."""
    return {("A", "B"): "win", ("B", "A"): "loss"}.get((str(in_front), str(behind)), "tie")


def sample(row: tuple[str, str, str], verdict: str) -> dict[str, Any]:
    asked, own, theirs = row
    return {"prompt": asked, "answer": own, "reference": theirs, "verdict": verdict}
