"""One more teacher for a recording: the mixture of two teachers' distributions, or the surer one's. Wan et al. 2024
(FuseLLM, average and choice), arXiv:2401.10491, section 3.2; the choice without labels: the lower entropy.

    m = (1 - weight) p + weight q      p recorded, q the further teacher, both at the recording's temperature

The base is what `problems` names, and may be of several teachers itself. What p gives to tokens outside its k is known
only in sum; it is shared out as q does it, none above the k-th, so a teacher mixed with itself is itself. Cost: one
forward pass over the rows. Shapes: R rows, T positions, K tokens, V vocabulary.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from stages.lib.frame.errors import UserError
from stages.lib.store import traces
from stages.traces import Recording


class Params(Recording):
    method: Literal["multi_teacher"]
    weight: float = Field(0.5, ge=0, le=1)  # of the further teacher
    route: Literal["mixture", "confidence"] = "mixture"  # confidence: at every position one of the two
    k: PositiveInt = 16
    temperature: PositiveFloat = 2.0  # what the base was recorded at
    batch_size: PositiveInt = 32


@torch.no_grad()
def record(teacher: Any, _tokenizer: Any, base: Any, _rows: Any, p: Params) -> Iterator[dict[str, Any]]:
    require_base(base, p)
    rows, read = traces.about(base)["rows"], traces.batches(base, p.batch_size)
    for first in range(0, rows, p.batch_size):
        batch = {name: each[: rows - first] for name, each in read(first // p.batch_size).items()}
        logits_RTV = teacher(input_ids=batch["ids"].to(teacher.device), use_cache=False).logits.cpu()
        q_RTV = (logits_RTV.float() / p.temperature).softmax(-1)
        mixed_RTV = mix(batch["logprob"].exp(), batch["index"], q_RTV, p)
        index_RTK = mixed_RTV.scatter_add(-1, batch["index"], 1e-5 * mixed_RTV.gather(-1, batch["index"])).topk(p.k)[1]
        logprob_RTK = mixed_RTV.gather(-1, index_RTK).clamp_min(1e-30).log()  # of equals, those that are known stay
        yield {"ids": batch["ids"], "index": index_RTK, "logprob": logprob_RTK, "vocab": q_RTV.shape[-1]}


def require_base(base: Any, p: Params) -> None:
    """Refuse what is no recording, or one of another temperature, before the teacher is asked."""
    if not isinstance(base, Path):
        raise UserError(f"params.yaml: problems is '{p.problems}'; multi_teacher wants a `method: logits` recording")
    if (recorded := traces.about(base)["technique"]["temperature"]) != p.temperature:
        raise UserError(f"params.yaml: temperature is {p.temperature}, but {base} was recorded at {recorded}")


def mix(p_RTK: Tensor, index_RTK: Tensor, q_RTV: Tensor, p: Params) -> Tensor:
    p_RTV = complete(p_RTK, index_RTK, q_RTV)
    if p.route == "mixture":
        return (1 - p.weight) * p_RTV + p.weight * q_RTV
    q_RT1, p_RT1 = (torch.special.entr(each_RTV).sum(-1, keepdim=True) for each_RTV in (q_RTV, p_RTV))
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
