"""Answers of a teacher behind any OpenAI-compatible endpoint: llama.cpp's server, vLLM, Ollama, or a paid one.

Sequence-level distillation from a black box: Kim & Rush 2016, arXiv:1606.07947; which answers are kept, stages/traces/
parts/answers.py says. With `evolve`, the teacher first makes new prompts of the data's, in that many rounds
(Evol-Instruct, arXiv:2304.12244), and the student learns its answers to those (Orca, arXiv:2306.02707). Cost:
`count` x `attempts` requests at most, `evolve` + 1 times.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from stages.lib.sampling.endpoint import Client, Service
from stages.lib.store import records
from stages.lib.store.records import Record
from stages.traces.parts import evolution
from stages.traces.parts.answers import Answers, Writer, drawn


class Endpoint(Service, Answers):
    method: Literal["endpoint"]
    price_per_million_input: NonNegativeFloat = 0.0  # of tokens, in any currency
    price_per_million_output: NonNegativeFloat = 0.0
    evolve: NonNegativeInt = 0  # rounds
    prompt_words: PositiveInt = 150  # of an evolved prompt, at most

    @model_validator(mode="after")
    def evolution_fits(self) -> "Endpoint":
        if self.evolve and self.choose == "verifier":
            raise ValueError("evolved prompts have no scorer: `choose` must be self_consistency or first")
        if not self.evolve:
            self.refuse_idle("prompt_words", "with evolve above 0")
        return self

    def section(self) -> str:
        return "endpoints"

    def open(self, model: Path | None, place: Path) -> "EndpointWriter":
        return EndpointWriter(self, place)

    def record(self, teacher: Writer, source: Path) -> Iterator[Record]:
        if not self.evolve:
            yield from super().record(teacher, source)
            return
        problems = records.load(source / "records", "train")
        seeds = [row for rows in drawn(problems, self.seed, self.count, self.batch_size) for row in rows]
        ask = partial(teacher.reply, 0)
        yield from self.kept(evolution.evolve(seeds, ask, self.evolve, self.prompt_words, self.seed), ask)


class EndpointWriter(Writer):
    """One prompt a request; every attempt has a seed of its own."""

    def __init__(self, p: Endpoint, place: Path):
        self.p = p
        self.client = Client(p, place)

    def reply(self, batch: int, prompts: list[str], attempt: int) -> list[str]:
        """A reply that was cut short counts as none."""
        sampling = {"temperature": self.p.temperature, "seed": self.p.seed + attempt}
        found = self.client.ask(prompts, max_tokens=self.p.max_new_tokens, **sampling)
        return [answer["text"] if answer["finish"] != "length" else "" for answer in found]

    def spent(self) -> dict[str, float]:
        """Requests, tokens and their price, of all that this recording asked for, now or before a kill."""
        spent = self.client.spent()
        prices = self.p.price_per_million_input, self.p.price_per_million_output
        tokens = spent["prompt_tokens"], spent["completion_tokens"]
        return spent | {"cost": sum(count * price / 1e6 for count, price in zip(tokens, prices, strict=True))}
