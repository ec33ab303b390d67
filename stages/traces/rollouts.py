"""All that a model answers to its problems, right and wrong, with what it is worth: one bill for many uses.

`group` replies to each of `count` problems, with their tokens, the log-probabilities that they were drawn with and
their reward. align/kto learns from them as they are, dpo, orpo and simpo from pairs of a right and a wrong reply to one
prompt, sft from the right ones (rejection sampling: Yuan et al. 2023, arXiv:2308.01825, section 3.3). `liked` says
whether a reply is right in full. Cost: `count` x `group` replies. Shapes: B replies, R tokens of the longest.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from stages.lib.sampling import rollouts
from stages.lib.sampling.rewards import Rewards
from stages.lib.store import records
from stages.lib.store.records import Record
from stages.lib.text import chat
from stages.traces import Readings
from stages.traces.parts.answers import drawn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class Rollouts(Readings):
    method: Literal["rollouts"]
    seed: int = 0  # of the choice of problems, and of the replies
    count: PositiveInt  # problems asked
    group: int = Field(8, ge=2)  # replies to each
    temperature: PositiveFloat = 1.0
    max_new_tokens: PositiveInt = 64
    batch_size: PositiveInt = 64  # replies at a time
    rewards: Rewards = Rewards()

    @model_validator(mode="after")
    def whole_groups(self) -> "Rollouts":
        if self.batch_size % self.group:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of group {self.group}, the replies to a prompt"
            )
        if self.rewards.model:
            raise ValueError("rewards.model is a reward model's word: that on recorded replies is traces/rewarded's")
        if self.rewards.judge:
            raise ValueError("rewards.judge: a judge is asked while a model learns (align), not here")
        return self

    def record(self, teacher: "tuple[PreTrainedModel, PreTrainedTokenizerFast]", source: Path) -> Iterator[Record]:
        model, tokenizer = teacher
        dice = np.random.default_rng(self.seed)
        rows = records.load(source / "records", "train")
        for batch in drawn(rows, self.seed, self.count, self.batch_size // self.group):
            asked = [(row, chat.prompt_ids(tokenizer, row["prompt"])) for row in batch for _ in range(self.group)]
            said = rollouts.play(
                model, tokenizer, asked, self.max_new_tokens, self.temperature, int(dice.integers(2**62))
            )
            for number, ((row, _), reply) in enumerate(zip(asked, said.replies, strict=True)):
                tokens = said.drawn.said[number]
                worth = self.rewards.of(row, reply, self.max_new_tokens, dice)
                yield row | {
                    "id": f"{row['id']}/{number % self.group}",
                    "solution": reply.text,
                    "known": row["solution"],
                    "liked": worth.right,
                    "reward": worth.reward,
                    "stopped": reply.stopped,
                    "tokens": said.drawn.ids[number][tokens].tolist(),
                    "log_probabilities": [round(each, 6) for each in said.drawn.log_p[number][tokens].tolist()],
                }

    def measure(self, teacher: object, folder: Path) -> dict[str, float]:
        rows = records.load(folder, "train")
        liked_GK = np.array([row["liked"] for row in rows]).reshape(-1, self.group)
        rewards_GK = np.array([row["reward"] for row in rows]).reshape(-1, self.group)
        return {
            "right": float(liked_GK.mean()),
            "right_in_group": float(liked_GK.any(1).mean()),  # pass@group
            "live": float((rewards_GK.max(1) > rewards_GK.min(1)).mean()),
            "reward": float(rewards_GK.mean()),
            "cut_off": 1 - sum(row["stopped"] for row in rows) / len(rows),
            "tokens_per_reply": sum(len(row["tokens"]) for row in rows) / len(rows),
        }
