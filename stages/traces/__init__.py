"""Traces: what a teacher knows, written down once for every student.

In   model artefact (the teacher; none if it is behind an endpoint), source: the folder of the variant that it is asked
     about: token rows (tokens/), problems (records/) or another recording of distributions (records/)
Out  records: solutions as train.jsonl, or distributions as safetensors shards, with about.json
     (stages/lib/store/traces.py); metrics: what was kept; of distributions bytes_per_token, and of one teacher's
     kl_to_full, kl_of_code (nats/token, read back from what was written); of an endpoint what was spent
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from stages.lib.frame import files
from stages.lib.frame.params import Model, Parent, Variant
from stages.lib.store import traces
from stages.lib.store.records import Record

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Teacher = TypeVar("Teacher")  # what a technique opens and then records


class Recording(Variant, ABC, Generic[Teacher]):
    """The contract of a technique."""

    source: Parent

    def made_of(self, model: Path | None, source: Path) -> dict[str, str]:
        """What later stages check, for about.json; refuses what does not fit before anything is loaded."""
        return {"teacher": files.digest(model)} if model else {}

    @abstractmethod
    def open(self, model: Path | None, place: Path) -> Teacher:
        """The teacher; `place` is a folder where it may keep what a kill must not undo."""

    @abstractmethod
    def record(self, teacher: Teacher, source: Path) -> Iterator[Record | traces.Shard]:
        """Solutions, or distributions of rows, written by the stage as they come."""

    def measure(self, teacher: Teacher, folder: Path) -> dict[str, float]:
        """What is to be said of the finished recording in `folder` besides its size."""
        return {}


class Distributions(Recording["PreTrainedModel"], ABC):
    """Recordings of a model's next-token distributions."""

    model: Model

    def open(self, model: Path | None, place: Path) -> "PreTrainedModel":
        from stages.lib.store import models

        assert model, "the stage gives one to every technique with the parameter `model`"
        return models.load(model)


class Readings(Recording[tuple["PreTrainedModel", "PreTrainedTokenizerFast"]], ABC):
    """Recordings of what a model makes of texts."""

    model: Model

    def open(self, model: Path | None, place: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerFast]":
        from stages.lib.store import models

        assert model, "the stage gives one to every technique with the parameter `model`"
        return models.load(model), models.load_tokenizer(model)
