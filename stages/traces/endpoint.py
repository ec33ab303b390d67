"""Answers of a teacher behind any OpenAI-compatible endpoint: llama.cpp's server, vLLM, Ollama, or a paid one.

Sequence-level distillation from a black box: Kim & Rush 2016, arXiv:1606.07947; which answers are kept, stages/traces/
parts/answers.py says. With `evolve`, the teacher first makes new prompts of the data's, in that many rounds (Evol-Instruct,
arXiv:2304.12244), and the student learns its answers to those (Orca, arXiv:2306.02707). `model:` is the model whose
tokenizer the recording is for; it is not run. Cost: `count` x `attempts` requests at most, `evolve` + 1 times.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from stages.lib.store.records import Record
from stages.traces.parts import answers, endpoint_client, evolution


class Params(answers.Sampling):
    method: Literal["endpoint"]
    url: str = Field("http://127.0.0.1:8080/v1", pattern=r"^https?://[^\s@?]+$")  # no password, no key
    name: str = "default"  # of the model, as the endpoint calls it
    concurrency: PositiveInt = 4  # requests at a time
    requests_per_second: PositiveFloat | None = None
    retries: NonNegativeInt = 5
    backoff: PositiveFloat = 1.0  # seconds before the first retry; doubles with each
    timeout: PositiveFloat = 120.0  # seconds
    price_per_million_input: NonNegativeFloat = 0.0  # of tokens, in any currency
    price_per_million_output: NonNegativeFloat = 0.0
    evolve: NonNegativeInt = 0  # rounds
    prompt_words: PositiveInt = 150  # of an evolved prompt, at most

    @model_validator(mode="after")
    def verifiable(self) -> "Params":
        if self.evolve and self.choose == "verifier":
            raise ValueError("evolved prompts have no scorer: `choose` must be self_consistency or first")
        return self


def open_teacher(_model: Path, place: Path, p: Params) -> endpoint_client.Endpoint:
    return endpoint_client.Endpoint(p, place)


def record(teacher: Any, _tokenizer: Any, problems: list[Record], _rows: Any, p: Params) -> Iterator[Record]:
    batches = answers.drawn(problems, p)
    if p.evolve:
        seeds = [row for batch in batches for row in batch]
        batches = [evolution.evolve(seeds, teacher.ask, p.evolve, p.prompt_words, p.seed)]
    for asked in batches:
        yield from answers.kept(asked, teacher.ask, p)
