"""One more teacher for a recording: the mixture of two teachers' distributions, or the surer one's. Wan et al. 2024
(FuseLLM, average and choice), arXiv:2401.10491, section 3.2; the choice without labels: the lower entropy.

    m = (1 - weight) p + weight q      p recorded, q the further teacher, both at the recording's temperature

The base is what `source` names, and may be of several teachers itself. What p gives to tokens outside its k is known
only in sum; it is shared out as q does it, none above the k-th, so a teacher mixed with itself is itself. Cost: one
forward pass over the rows. Shapes: R rows, T positions, K tokens, V vocabulary.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.store import traces
from stages.traces import Distributions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class MultiTeacher(Distributions):
    method: Literal["multi_teacher"]
    weight: float = Field(0.5, ge=0, le=1)  # of the further teacher
    route: Literal["mixture", "confidence"] = "mixture"  # confidence: at every position one of the two
    k: PositiveInt = 16
    temperature: PositiveFloat = 2.0  # what the base was recorded at
    batch_size: PositiveInt = 32  # rows of a shard

    @model_validator(mode="after")
    def weight_counts(self) -> "MultiTeacher":
        if self.route == "confidence":
            self.refuse_idle("weight", "with `route: mixture`")
        return self

    def made_of(self, model: Path | None, source: Path) -> dict[str, str]:
        """The rows are the base's, and so their numbers."""
        assert model
        base = source / "records"
        if not traces.distributions(base):
            raise UserError(f"params.yaml: source is '{self.source}'; multi_teacher wants a `method: logits` recording")
        traces.require(base, tokenizer=files.digest(model / "tokenizer.json"))
        recorded = traces.about(base)
        if recorded["technique"]["temperature"] != self.temperature:
            temperature = recorded["technique"]["temperature"]
            raise UserError(f"params.yaml: temperature is {self.temperature}, but {base} was recorded at {temperature}")
        rows = {name: recorded[name] for name in ("tokenizer", "tokens")}
        return super().made_of(model, source) | rows

    @torch.no_grad()
    def record(self, teacher: "PreTrainedModel", source: Path) -> Iterator[traces.Shard]:
        base = source / "records"
        recorded, base_batch = traces.about(base), traces.batches(base, self.batch_size)
        rows, vocab = recorded["rows"], recorded["codec"]["vocab"]
        for first in range(0, rows, self.batch_size):
            batch = {name: part[: rows - first] for name, part in base_batch(first // self.batch_size).items()}
            logits_RTV = teacher(input_ids=batch["ids"].to(teacher.device), use_cache=False).logits.cpu()
            q_RTV = (logits_RTV[..., :vocab].float() / self.temperature).softmax(-1)
            mixed_RTV = self.mix(batch["logprob"].exp(), batch["index"], q_RTV)
            known_RTK = 1e-5 * mixed_RTV.gather(-1, batch["index"])  # of equals, those that are known stay
            index_RTK = mixed_RTV.scatter_add(-1, batch["index"], known_RTK).topk(self.k)[1]
            logprob_RTK = mixed_RTV.gather(-1, index_RTK).clamp_min(1e-30).log()
            yield traces.Shard(batch["ids"], index_RTK, logprob_RTK, q_RTV.shape[-1])

    def mix(self, p_RTK: Tensor, index_RTK: Tensor, q_RTV: Tensor) -> Tensor:
        p_RTV = complete(p_RTK, index_RTK, q_RTV)
        if self.route == "mixture":
            return (1 - self.weight) * p_RTV + self.weight * q_RTV
        q_RT1, p_RT1 = (torch.special.entr(x_RTV).sum(-1, keepdim=True) for x_RTV in (q_RTV, p_RTV))
        return torch.where(q_RT1 < p_RT1, q_RTV, p_RTV)


def complete(p_RTK: Tensor, index_RTK: Tensor, q_RTV: Tensor) -> Tensor:
    """The recorded probabilities, and the rest in q's proportions."""
    outside_RTV = q_RTV.scatter(-1, index_RTK, 0)
    share_RT1 = rest(p_RTK) / outside_RTV.sum(-1, keepdim=True).clamp_min(1e-12)
    tail_RTV = torch.minimum(outside_RTV * share_RT1, p_RTK.min(-1, keepdim=True).values)
    return tail_RTV.scatter(-1, index_RTK, p_RTK)


def rest(p_RTK: Tensor) -> Tensor:
    """Probability outside the k tokens; float16 records can sum to a hair over one."""
    return (1 - p_RTK.sum(-1, keepdim=True)).clamp_min(0)
