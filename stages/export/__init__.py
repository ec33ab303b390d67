"""Export: a model artefact in, the same model in the file format of a runtime out.

In   model artefact (dense, pruned or quantized), token artefact (held-out rows)
Out  model: what the format needs, the tokenizer, MANIFEST.json (sha256 of every file); metrics: kl (source || export),
     same_top (share of positions), loss_before (source's), loss_after (nats/token), parameters, bytes (of the model
     file), bits_per_weight (scales counted), and for the model card format, run, architecture, vocabulary, context

The stage reads the folder back in the runtime it ships for and refuses what strays from its source by more than
`max_kl` or is larger than it.
`python -m apps.verify FOLDER` checks an export that went through other hands.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveFloat, PositiveInt

from stages.lib.frame.params import Calibration, Model, Tokens, Variant
from stages.lib.store import dense

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from stages.lib.runtimes.base import Runtime


class Export(Variant, ABC):
    """The contract of a technique."""

    FORMAT: ClassVar[str]  # what the model card calls it; {type} stands for the variant's parameter of that name
    RUN: ClassVar[str]  # how to run it, indented as the card shows it

    model: Model
    tokens: Tokens
    rows: PositiveInt = 32  # held-out rows to compare on
    max_kl: PositiveFloat = 0.2  # nats/token; more is a wrong file, not a lossy one

    def load(self, folder: Path) -> Any:
        """The model of an artefact as `write` wants it: plain 32-bit floats, whatever it is stored as."""
        return dense.load(folder)

    def needs_rows(self) -> Calibration | None:
        """The training rows that `write` looks at, if any."""
        return None

    def context(self, config: Any) -> int | None:
        """Tokens that what is written is right for: what the config says, unless the format can't. None: no end."""
        return getattr(config.get_text_config(), "max_position_embeddings", None)

    def loss(self, model: Any) -> float:
        """nats/token at which a file is wrong and not lossy: `max_kl`, or what a format that hardly rounds may lose."""
        return self.max_kl

    @abstractmethod
    def write(self, model: Any, tokenizer: "PreTrainedTokenizerFast", folder: Path, rows: "Tensor") -> None:
        """Write what `load` gave into an existing folder. `rows` (N, T) are what `needs_rows` names, or (0, 0)."""

    @abstractmethod
    def open(self, folder: Path) -> "Runtime":
        """What was written, in the runtime it ships for."""
