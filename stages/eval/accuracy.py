"""Accuracy: the share of held-out problems that the model answers right, greedily, through its chat template.

Right means full marks from the problem's own scorer (stages/lib/text/problems.py); where the answers are JSON,
`fields_right` is the mean share of their fields that are right, and of longer free texts there are `rouge_l` and `chrf`
(stages/eval/parts/overlap.py). A text to classify is answered by the likeliest label;
then `macro_f1` is the mean F1 of the labels and `calibration_error` how far the model's confidence is from its
accuracy, over ten equal bins of confidence (Guo et al. 2017, arXiv:1706.04599, eq. 3). Intervals: Wilson 1927,
JASA 22(158), 95 %: with z = 1.96,

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

`accuracy` is the mean over problems, `accuracy_macro` over families. Where an answer must stand behind a mark there is
`accuracy_lenient` too: the last line or word is right, mark or not. Samples: `right`, the mark of every problem, and
`answers`, the first problem of every family with the model's answer. Cost: up to max_new_tokens steps a problem.
"""

from collections import defaultdict
from itertools import chain
from statistics import mean
from typing import Any

from pydantic import PositiveInt

from stages.eval import OfOne, Scores
from stages.eval.parts import labelled, overlap
from stages.eval.parts.answers import first_of_each_family, greedy
from stages.eval.parts.intervals import wilson
from stages.lib.runtimes.base import Runtime
from stages.lib.runtimes.labels import likely
from stages.lib.store.records import Record
from stages.lib.text import chat, labels
from stages.lib.text import problems as tasks


class Accuracy(OfOne):
    per_family: PositiveInt = 24
    max_new_tokens: PositiveInt = 128

    def score(self, runtime: Runtime, records: list[Record]) -> Scores:
        problems = first_of_each_family(records, self.per_family, "accuracy")
        confidence_N = None
        if task := labels.task(problems):
            likely_NL = likely(runtime, task.labels, [problem["prompt"] for problem in problems])
            answers, confidence_N = [task.labels[best] for best in likely_NL.argmax(1)], likely_NL.max(1)
        else:
            answers = greedy(runtime, problems, self.max_new_tokens)
        known = [problem["solution"] for problem in problems]
        right = [tasks.correct(problem, answer) for problem, answer in zip(problems, answers, strict=True)]
        families: dict[str, list[bool]] = defaultdict(list)
        examples: dict[str, dict[str, Any]] = {}
        for problem, answer, mark in zip(problems, answers, right, strict=True):
            families[problem["family"]].append(mark)
            examples.setdefault(problem["family"], example(problem, answer, mark))

        metrics = summary(right) | {"accuracy_macro": mean(mean(marks) for marks in families.values())}
        for family, marks in families.items():
            metrics |= {f"{key}.{family}": value for key, value in summary(marks).items()}
        metrics |= leniently([row for row in zip(problems, answers, strict=True) if "entry" in row[0]])
        if all(problem.get("scorer") == "json" for problem in problems):
            pairs = zip(problems, answers, strict=True)
            metrics["fields_right"] = mean(tasks.score(problem, answer) for problem, answer in pairs)
        if not any({"scorer", "entry", "labels"} & problem.keys() for problem in problems):
            metrics |= overlap.scores(known, answers)
        if confidence_N is not None:
            metrics["macro_f1"] = labelled.macro_f1(known, answers)
            metrics["calibration_error"] = labelled.calibration_error(confidence_N, right)
        marks_by_id = {problem["id"]: mark for problem, mark in zip(problems, right, strict=True)}
        return Scores(metrics, samples={"right": marks_by_id, "answers": list(examples.values())})


def leniently(answered: list[tuple[Record, str]]) -> dict[str, float]:
    """Of answers that must stand behind a mark: the share that is right without it, of all and of each family."""
    families: dict[str, list[bool]] = defaultdict(list)
    for problem, answer in answered:
        families[problem["family"]].append(tasks.lenient(problem, answer))
    by_family = {f"accuracy_lenient.{family}": mean(marks) for family, marks in families.items()}
    return {"accuracy_lenient": mean(chain(*families.values()))} | by_family if families else {}


def example(problem: Record, answer: str, correct: bool) -> dict[str, Any]:
    """What was asked, what is right, and what the model wrote."""
    expected = problem["answer"] if "answer" in problem else problem["solution"]
    shown = {"family": problem["family"], "prompt": chat.plain(problem["prompt"]), "expected": expected}
    return shown | {"answer": answer, "correct": correct}


def summary(right: list[bool]) -> dict[str, float]:
    low, high = wilson(sum(right), len(right))
    return {"accuracy": mean(right), "accuracy_low": low, "accuracy_high": high, "num_problems": len(right)}
