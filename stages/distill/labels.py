"""Labels: the student says each label as often as its teacher. Hinton et al. 2015, arXiv:1503.02531, section 2, for
the first token of an answer:

    - sum_l p_teacher(l | x) log p_student(token of l | x)

over the student's whole vocabulary, so that it says nothing but labels; and how the likeliest label goes on and ends,
by the mean of - log p_student over its other tokens and the end token, so that any runtime stops there. From
traces/labels; given labelled data instead, it learns their labels alone: the control. Student and teacher may have
different vocabularies.

A label is a single number a text. With `hints` the student also learns what `teacher` holds inside at every token, at
first nothing else (Romero et al. 2014, arXiv:1412.6550, eq. 3; Jiao et al. 2019, arXiv:1909.10351, eq. 8), of each
channel in units of its own spread, since a few channels are hundreds of times as large as the rest (Sun et al. 2024,
arXiv:2402.17762) and plain squares would teach those alone:

    mean_(i,j) | W_ij h_i / rms(h_i) + b_ij - (h_j - mean h_j) / std h_j |^2

Cost of hints: a teacher's forward pass over every row, once for as many rows as REMEMBERED bytes hold.
Shapes: N texts of a batch, M tokens of theirs, K of their answers, L labels, V vocabulary, D hidden of the student, E
of the teacher.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, model_validator
from torch import Tensor, nn

from stages.distill import SCAFFOLD, Batch, Distillation, Teacher
from stages.distill.parts import layer_pairs
from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Params
from stages.lib.nets import attention, packed
from stages.lib.text import labels, packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from stages.lib.store.records import Record


REMEMBERED = 2e9  # bytes of the teacher's states that are kept for the next time that a row comes round


class Hints(Params):
    layers: layer_pairs.Pairs | None = None  # [student, teacher]; none: evenly spread, last to last
    first: float = Field(0.4, ge=0, lt=1)  # share of the steps that learn hints alone
    weight: NonNegativeFloat = 0.3  # of the hints beside the labels, after that

    @model_validator(mode="after")
    def hint(self) -> "Hints":
        if self.first == 0 and self.weight == 0:
            raise ValueError("first and weight are both 0, so nothing is hinted: leave `hints` out")
        return self


class Remembering(nn.ModuleList):
    """The projections, which begin at zero and ask nothing of the student until they know how the two bases relate; and
    the teacher's states of rows that were read before, which are no part of its state."""

    def __init__(self, projections: list[nn.Linear]):
        super().__init__(projections)
        for weight in self.parameters():
            nn.init.zeros_(weight)
        self.states: dict[bytes, Tensor] = {}


class Labels(Distillation):
    method: Literal["labels"]
    context: int = Field(256, ge=16)
    hints: Hints | None = None

    def one_vocabulary(self) -> bool:
        return self.hints is not None

    def batches(self, tokenizer: "PreTrainedTokenizerFast", traces: Path) -> Callable[[int], Batch]:
        p, rows = self.training, self.solved(traces)
        task = labels.require(rows, self.traces, ": take `solutions`")
        likely_RL = torch.tensor([likely(row, task, str(self.traces)) for row in rows])
        token_L = torch.tensor(labels.tokens(tokenizer, task.labels))
        best = [task.labels[i] for i in likely_RL.argmax(1).tolist()]
        packs = packing.shuffled(tokenizer, answered(tokenizer, rows, best), self.context, p.part_size, p.seed)

        def with_targets(index: int) -> Batch:
            """The step travels with the batch: a resumed run must be in the phase where it was."""
            batch = packs(index)
            numbers_N = batch["labels"][(batch["labels"] >= 0) & (batch["labels"] < len(rows))]
            more = {"texts": torch.tensor(len(rows)), "step": torch.tensor(index // p.parts)}
            return batch | {"targets": likely_RL[numbers_N], "tokens": token_L} | more

        return with_targets

    def scaffold(self, student: "PreTrainedModel", teacher: Teacher) -> nn.Module | None:
        if not self.hints:
            return None
        for name, model in ((self.model, student), (self.teacher, teacher.model)):
            if not attention.separable(model):
                raise UserError(f"hints are read token by token from packed rows, and {name} has a state across them")
        sizes = student.config.hidden_size, teacher.model.config.hidden_size
        return Remembering([nn.Linear(*sizes, device=student.device) for _ in self.pairs(student, teacher)])

    def loss(self, student: "PreTrainedModel", teacher: Teacher, batch: Batch) -> Tensor:
        output, _, said_K = packed.forward(student, batch, output_hidden_states=self.hints is not None)
        log_KV, begins_K = output.logits.float().log_softmax(-1), said_K < batch["texts"]
        labelled = -(batch["targets"] * log_KV[begins_K][:, batch["tokens"]]).sum(-1).mean()
        labelled = labelled + F.nll_loss(log_KV[~begins_K], said_K[~begins_K] - batch["texts"])
        if not self.hints:
            return labelled
        hinted = self.distance(student, teacher, batch, output.hidden_states)
        first = bool(batch["step"] < self.hints.first * self.training.steps)
        return hinted if first else labelled + self.hints.weight * hinted

    def terms(self, batch: Batch) -> Tensor:
        """Labelled texts."""
        labels_BT = batch["labels"]
        return ((labels_BT >= 0) & (labels_BT < batch["texts"])).sum()

    def distance(
        self, student: "PreTrainedModel", teacher: Teacher, batch: Batch, states: "tuple[Tensor, ...]"
    ) -> Tensor:
        """Mean squared error of the projected states, over pairs, tokens and channels."""
        projections = student.get_submodule(SCAFFOLD)
        assert isinstance(projections, Remembering)
        pairs = self.pairs(student, teacher)
        # not the first token, which every text has, nor what fills a row up, nor the answer
        read_BT = (batch["positions"] > 0) & (batch["labels"] == packing.IGNORE)
        theirs_PBTE = remembered(teacher, batch, [j for _, j in pairs], projections.states)
        total = torch.zeros((), device=student.device)
        for project, (i, _), theirs_BTE in zip(projections, pairs, theirs_PBTE, strict=True):
            target_ME = F.batch_norm(theirs_BTE[read_BT].float(), None, None, training=True)
            state_MD = states[i][read_BT]
            total = total + F.mse_loss(project(F.rms_norm(state_MD, state_MD.shape[-1:])).float(), target_ME)
        return total / len(pairs)

    def pairs(self, student: "PreTrainedModel", teacher: Teacher) -> list[layer_pairs.Pair]:
        assert self.hints
        return layer_pairs.pair(student, teacher.model, self.hints.layers, self.teacher)


def remembered(teacher: Teacher, batch: Batch, layers: list[int], known: dict[bytes, Tensor]) -> Tensor:
    """What these layers of the teacher hold, (P, B, T, E) in 16 bits, whether it has just read a row or before: one at
    a time, so that nothing depends on which of them it knew."""
    found = []
    for number, key in enumerate(row.cpu().numpy().tobytes() for row in batch["ids"]):
        states = known.get(key)
        if states is None:
            row = {name: batch[name][number : number + 1] for name in ("ids", "labels", "positions")}
            with torch.no_grad():
                output, _, _ = packed.forward(teacher.model, row, output_hidden_states=True)
            states = torch.cat([output.hidden_states[layer] for layer in layers]).bfloat16()
            if states.nbytes * (len(known) + 1) <= REMEMBERED:
                known[key] = states
        found.append(states)
    return torch.stack(found, 1)


def answered(tokenizer: "PreTrainedTokenizerFast", rows: "list[Record]", said: list[str]) -> list[packing.Example]:
    """Each prompt with a label and its end. The label of an example's first answer token is the number of the record,
    that of every other one the token, behind all such numbers."""
    found = []
    for number, (row, label) in enumerate(zip(rows, said, strict=True)):
        ids, labels, positions = packing.encode(tokenizer, row | {"solution": label})
        begin = labels.count(packing.IGNORE)
        found.append((ids, [*labels[:begin], number, *(len(rows) + token for token in ids[begin + 1 :])], positions))
    return found


def likely(row: "Record", task: labels.Task, place: str) -> list[float]:
    """Each label's probability, by a teacher or by the label itself."""
    if "probabilities" in row:
        return row["probabilities"]
    if "solution" not in row:
        raise UserError(f"{place}: record '{row['id']}' has no label; traces/labels asks a teacher for them")
    return [float(label == row["solution"]) for label in task.labels]
