"""Eval: a model artefact in, what it can do and what it costs out; every measure of every model is a run of its own.

In   model artefact of any runtime, records (documents or problems, the held-out split) unless a measure brings its own
Out  metrics: accuracy, bits a byte, or parameters, bits_per_weight (scales counted) and bytes (the weights file that
     ships), or those of lm-eval's tasks; timings: speeds, energy, peak memory; samples.json: what the model answers,
     for people to read

A technique is a measure; the name of its file is its key under `eval`, beside `models`, which says what is measured.
Relative figures (share of the teacher's accuracy, size ratio) need several models and are the report's:
`python -m stages.report`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stages.lib.frame.params import Records, Technique
from stages.lib.runtimes.base import Runtime
from stages.lib.runtimes.open import open_runtime
from stages.lib.store.records import Record


class Scores(NamedTuple):
    """Numbers and texts by name. No two measures use one name."""

    metrics: Mapping[str, float] = {}  # the same on every machine
    timings: Mapping[str, float] = {}  # this machine's
    samples: Mapping[str, Any] = {}  # for people to read, and marks item by item


class Beside(NamedTuple):
    """What a measure of two models gets besides one of them."""

    reference: Path  # the other
    place: Path  # a folder that outlives a kill


class Measure(Technique, ABC):
    """The contract of a technique."""

    records: Records

    @abstractmethod
    def evaluate(self, model: Path, records: list[Record], beside: Beside | None = None) -> Scores:
        """The scores of a model artefact on held-out records."""


class OfOne(Measure, ABC):
    """A measure of what one model does in its runtime; one of the artefact itself has more to do in `evaluate`."""

    @abstractmethod
    def score(self, runtime: Runtime, records: list[Record]) -> Scores:
        """What the model in the runtime gets on held-out records."""

    def evaluate(self, model: Path, records: list[Record], beside: Beside | None = None) -> Scores:
        return self.score(open_runtime(model), records)
