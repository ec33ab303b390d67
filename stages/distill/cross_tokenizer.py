"""Universal logit distillation: a teacher with another vocabulary. Boizard et al. 2024, arXiv:2402.12030, eq. 3 and 5.

    L = CE + weight 1/G sum_g sum_i |p_g,(i) - q_g,(i)|

(i) is the i-th largest: the Wasserstein-1 distance where all tokens are equally far apart, so no token needs a
counterpart. `align: spans` compares where both tokenizers have read the same text (GOLD, Patino et al. 2025,
huggingface.co/spaces/HuggingFaceH4/general-on-policy-logit-distillation): of the tokens of a span the last one's
distribution times the probability of those before it. `align: positions` is the paper's: n-th token with n-th token,
what is longer cut off. Cost: a live pass of the teacher, a sort of every distribution. Shapes: B rows, T positions,
N reply tokens, G groups that are compared, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, model_validator
from torch import Tensor

from stages.distill import Batch, Distillation, Teacher
from stages.lib.frame.errors import UserError
from stages.lib.nets import packed
from stages.lib.store import records
from stages.lib.text import chat, packing
from stages.lib.training import loop

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class CrossTokenizer(Distillation):
    method: Literal["cross_tokenizer"]
    weight: NonNegativeFloat = 1.5  # of the teacher; 0 learns the data alone
    align: Literal["spans", "positions"] = "spans"
    context: int = Field(256, ge=16)  # the student's tokens

    @model_validator(mode="after")
    def teacher_counts(self) -> "CrossTokenizer":
        if self.weight == 0:
            self.refuse_idle("align", "with weight above 0")
        return self

    def one_vocabulary(self) -> bool:
        return False

    def batches(self, tokenizer: "PreTrainedTokenizerFast", traces: Path) -> Callable[[int], Batch]:
        rows = self.solved(traces)
        order = np.random.default_rng(self.training.seed).permutation(len(rows))
        fitting = [rows[i] for i in order if len(packing.encode(tokenizer, rows[i])[0]) <= self.context]
        if not fitting:
            raise UserError(f"none of {len(rows)} examples fits into a context of {self.context} tokens")
        return partial(_batch, tokenizer, fitting, self.training.part_size, self.align)

    def loss(self, student: "PreTrainedModel", teacher: Teacher, batch: Batch) -> Tensor:
        student_NV, student_tokens_N = packed.logits(student, batch)
        hard = F.cross_entropy(student_NV.float(), student_tokens_N)
        if self.weight == 0:
            return hard
        student_marks, teacher_marks = batch["marks"], marks(teacher.tokenizer, batch["rows"], self.align)
        with torch.no_grad():
            teacher_batch = loop.to_device(encode(teacher.tokenizer, batch["rows"]), teacher.model.device)
            teacher_NV, teacher_tokens_N = packed.logits(teacher.model, teacher_batch)
        common = sorted(student_marks.keys() & teacher_marks.keys())
        q_GV = merged(student_NV, student_tokens_N, student_marks, common)
        p_GV = merged(teacher_NV, teacher_tokens_N, teacher_marks, common)
        return hard + self.weight * distance(p_GV, q_GV)


def _batch(
    tokenizer: "PreTrainedTokenizerFast", rows: list[records.Record], size: int, align: str, index: int
) -> Batch:
    chosen = [rows[(index * size + i) % len(rows)] for i in range(size)]
    return encode(tokenizer, chosen) | {"rows": chosen, "marks": marks(tokenizer, chosen, align)}


def encode(tokenizer: "PreTrainedTokenizerFast", rows: list[records.Record]) -> packing.Batch:
    """One example a row."""
    examples = [packing.encode(tokenizer, row)[:2] for row in rows]
    return packing.padded([(torch.tensor(ids), torch.tensor(labels)) for ids, labels in examples])


Mark = tuple[int, int]  # row, place in its reply: where two tokenizations may be compared


def marks(tokenizer: "PreTrainedTokenizerFast", rows: list[records.Record], align: str) -> dict[Mark, int]:
    """The number, among all reply tokens, of the last token before each mark."""
    found: dict[Mark, int] = {}
    begin = 0
    for number, row in enumerate(rows):
        ends = reply_ends(tokenizer, row)
        places = ends if align == "spans" else range(1, len(ends) + 1)
        found[number, 0] = begin - 1
        found |= {(number, place): begin + i for i, place in enumerate(places) if place >= 0}
        begin += len(ends)
    return found


def reply_ends(tokenizer: "PreTrainedTokenizerFast", row: records.Record) -> list[int]:
    """The character of the solution that each reply token ends at; -1 inside a character and after the solution."""
    coded, solution = chat.chat(tokenizer, row["prompt"], row["solution"]), row["solution"].strip()
    begin = coded.text.rindex(solution)
    spans = coded.spans[coded.begin :]
    whole = [end if end <= after else -1 for (_, end), (after, _) in pairwise([*spans, (len(coded.text), 0)])]
    return [max(0, end - begin) if 0 <= end <= begin + len(solution) else -1 for end in whole]


def merged(logits_NV: Tensor, tokens_N: Tensor, marks: dict[Mark, int], common: list[Mark]) -> Tensor:
    """Probability of the tokens between two marks with any token in the last one's place, (G, V)."""
    spans = [(marks[a] + 1, marks[b]) for a, b in pairwise(common) if a[0] == b[0]]
    first_G, last_G = torch.tensor(spans, device=logits_NV.device).T
    logprob_NV = logits_NV.float().log_softmax(-1)
    token_N = logprob_NV.gather(-1, tokens_N[:, None]).squeeze(1).double()
    before_N = token_N.cumsum(0) - token_N
    return (logprob_NV[last_G] + (before_N[last_G] - before_N[first_G]).float()[:, None]).exp()


def distance(p_GV: Tensor, q_GV: Tensor) -> Tensor:
    """Mean over groups; the smaller vocabulary is filled up with zeros."""
    width = max(p_GV.shape[-1], q_GV.shape[-1])
    p_GV, q_GV = (F.pad(x.sort(-1, descending=True).values, (0, width - x.shape[-1])) for x in (p_GV, q_GV))
    return (p_GV - q_GV).abs().sum(-1).mean()
