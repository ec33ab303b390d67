"""Harness: tasks of lm-evaluation-harness on a model in the runtime it ships for. Gao et al., 10.5281/zenodo.5371628.

    log-likelihood of an answer = sum_t log softmax(logits_t)[answer_t]      behind the prompt, in nats

Every kind of task that lm-eval has (multiple_choice, loglikelihood, loglikelihood_rolling, generate_until), also on a
GGUF, of which lm-eval itself gets no log-likelihoods (its issue 1437). Tasks are data: what would run code or read
outside their folder is refused. Only the models under its own `models` are measured, since tasks take long.
Metrics: TASK.METRIC, or TASK.METRIC.FILTER where a task has filters, with TASK.METRIC_stderr and TASK.documents.
Samples: a few documents of each task, what the model was asked and what it answered.
Cost: one forward pass for each answer to choose from; those of one token share theirs.
"""

import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt, model_validator

from stages.eval import OfOne, Scores
from stages.eval.parts import tasks
from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Model, Params
from stages.lib.runtimes.base import Runtime
from stages.lib.store.records import Record

SHOWN = 3  # documents of each task
UNSAFE = re.compile(r"[^\w./ -]", re.ASCII)  # in the name of a metric, by MLflow's rules


class Tasks(Params):
    """Which tasks, and how they are put to a model."""

    source: str  # a folder: lm-eval's yaml files, and the data they name
    hub: list[str] = []  # tasks that lm-eval brings; their data comes from the Hugging Face hub
    limit: PositiveInt | None = None  # the first documents of each task
    context: int = Field(1024, ge=2)  # tokens; of a longer prompt the end counts, a longer text is cut into windows
    chat: bool = False  # through the model's chat template, examples as earlier turns


class Harness(OfOne):
    records: None = None  # tasks bring their own
    models: dict[str, Model] = {}  # some of eval.models
    tasks: Tasks | None = None

    @model_validator(mode="after")
    def ready(self) -> "Harness":
        """Everything that can be told before a model is loaded; without models nothing is wanted."""
        if not self.models:
            return self
        if self.tasks is None:
            raise ValueError("tasks is missing: its `source` is a folder of lm-eval's yaml files")
        if not find_spec("lm_eval"):
            raise UserError("eval.harness needs lm-eval: .venv/bin/pip install --no-deps -r infra/harness.lock")
        if not tasks.read(Path(self.tasks.source)) and not self.tasks.hub:
            raise ValueError(f"tasks.source is '{self.tasks.source}', and no .yaml file in it has a `task`")
        return self

    def score(self, runtime: Runtime, records: list[Record]) -> Scores:
        from stages.eval.parts import lm_eval_adapter

        assert self.tasks
        configs, more = tasks.read(Path(self.tasks.source)), self.tasks.model_dump(exclude={"source"})
        results = lm_eval_adapter.evaluate(runtime, configs, **more)
        metrics = dict(number for task, row in results["results"].items() for number in numbers(task, row))
        samples = {task: [example(sample) for sample in rows[:SHOWN]] for task, rows in results["samples"].items()}
        return Scores(metrics, samples={"tasks": samples})


def numbers(task: str, row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """lm-eval's {"METRIC,FILTER": value} under names that MLflow takes; what is no number ("N/A", nan) is left out."""
    yield f"{UNSAFE.sub('_', task)}.documents", row["sample_len"]
    for key, value in row.items():
        metric, comma, kind = key.partition(",")
        if comma and isinstance(value, Real) and isfinite(value):
            name = f"{task}.{metric}" if kind == "none" else f"{task}.{metric}.{kind}"
            yield UNSAFE.sub("_", name), float(value)


def example(sample: Mapping[str, Any]) -> dict[str, Any]:
    """One document: the prompt, answers to choose from with their log-likelihoods, or what was written, and marks."""
    requests = [list(arguments) for arguments in sample["arguments"]]
    choices = [request[1] for request in requests if len(request) > 1 and isinstance(request[1], str)]
    answers = sample["filtered_resps"]
    return {
        "prompt": requests[0][0],
        "expected": sample["target"],
        "answers": [{"answer": choice, "nats": answer[0]} for choice, answer in zip(choices, answers, strict=True)]
        if choices
        else answers,
        "marks": {name: sample[name] for name in sample["metrics"]},
    }
