"""Learning from rewards for what the policy itself writes: what all such methods share.

A step draws `group` replies to each of its prompts, rewards them, and moves the log-probability of every token by what
its reply is worth beside the others of its group:

    loss = mean over tokens or replies of (method's weight x log pi(token)) + kl x KL(pi || reference)

A group whose replies are all worth the same teaches nothing and counts neither above nor below the line (Yu et al.
2025, arXiv:2503.14476, section 3.2, without drawing more), so it is not read either: `entropy`, `drift` and `kl` of the
curve are of the others. Cost of a step: `max_new_tokens` forward passes, one forward and backward over the others; one
more forward of the reference where the distance from it is asked for.
Shapes: G groups, K replies of a group, B = G K replies of a part, T positions, N reply tokens, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from stages.align import Alignment, Given, Reference
from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Model
from stages.lib.nets import packed, reward
from stages.lib.sampling import rollouts
from stages.lib.sampling.endpoint import Client
from stages.lib.sampling.judge import Judge
from stages.lib.sampling.rewards import Reply, Rewards, honest
from stages.lib.store.records import Record
from stages.lib.text import chat, packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAR = 10.0  # nats: further apart than this the estimate of a distance would be all that is learnt
SEEDS = 2**62  # that a draw may have
LEAST = 0.05  # share of groups that must have something to teach before anything is trained


class Tokens(NamedTuple):
    """The tokens of a part's replies under the policy."""

    log_p: Tensor  # (N,), nats, with gradient
    drawn: Tensor  # (N,), nats: the same when they were drawn
    row: Tensor  # (N,): the reply that each belongs to
    state: Tensor  # (N, D): what the policy held where it chose each
    advantage: Tensor  # (B,)
    lengths: Tensor  # (B,)
    stopped: Tensor  # (B,): not cut off

    def per_reply(self, value_N: Tensor) -> Tensor:
        """Sums over the tokens of each reply, (B,)."""
        return value_N.new_zeros(len(self.lengths)).index_add(0, self.row, value_N)


class Online(Alignment, ABC):
    group: int = Field(8, ge=2)  # replies to a prompt
    max_new_tokens: PositiveInt = 64
    temperature: PositiveFloat = 1.0  # of the draws, and of the log-probabilities that are learnt
    rewards: Rewards = Rewards()
    reward_model: Model | None = None  # asked where `rewards` gives its word a weight
    judge: Judge | None = None  # the same
    kl: NonNegativeFloat = 0.0  # weight of the distance from the reference, nats a token
    kl_over: Literal["vocabulary", "drawn"] = "vocabulary"  # exact, or an estimate from the drawn tokens
    max_kl: PositiveFloat | None = None  # nats a token: further away the training stops
    patience: PositiveInt = 20  # steps in a row in which no group teaches anything; then the training stops
    forecast: NonNegativeInt = 32  # prompts that are tried before the training; 0: none

    @model_validator(mode="after")
    def whole_groups(self) -> "Online":
        if self.training.part_size % self.group:
            said = f"{self.training.part_size} replies a part of the batch are no whole groups of {self.group}"
            raise ValueError(f"training: {said}: make batch_size / accumulation a multiple of `group`")
        self.training.require_whole_model()
        if not (self.kl or self.max_kl):
            self.refuse_idle("kl_over", "with `kl` or `max_kl`")
        if bool(self.reward_model) != bool(self.rewards.model):
            raise ValueError("reward_model is asked by the weight `rewards.model`: give both or neither")
        if bool(self.judge) != bool(self.rewards.judge):
            raise ValueError("judge is asked by the weight `rewards.judge`: give both or neither")
        return self

    def section(self) -> str:
        return "rlhf" if self.reward_model else super().section()

    @abstractmethod
    def advantages(self, rewards_GK: Tensor) -> Tensor:
        """What a reply is worth beside the others of its group, (G, K)."""

    @abstractmethod
    def losses(self, tokens: Tokens, policy: "PreTrainedModel") -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of every token, (N,), and measures for the curve."""

    @abstractmethod
    def average(self, loss_N: Tensor, tokens: Tokens) -> Tensor:
        """The mean loss of the replies."""

    def live(self, rewards_GK: Tensor) -> Tensor:
        """Which groups have something to teach, (G,)."""
        return rewards_GK.amax(1) > rewards_GK.amin(1)

    def terms(self, batch: packing.Batch) -> Tensor:
        """Of the replies that count, as many as `average` is over."""
        kept_B = self.live(batch["reward"].view(-1, self.group)).repeat_interleave(self.group)
        return self.counted((batch["labels"][:, 1:] != packing.IGNORE).sum(1)[kept_B], batch["stopped"][kept_B])

    def counted(self, lengths_B: Tensor, stopped_B: Tensor) -> Tensor:
        """Replies, unless a method's mean is over tokens."""
        return torch.tensor(len(lengths_B))

    def batches(self, given: Given) -> Callable[[int], packing.Batch]:
        player = Player(self, given)
        if self.forecast:
            player.forecast()
        return player.part

    def loss(
        self, policy: "PreTrainedModel", reference: Reference, batch: packing.Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        rewards_GK = batch["reward"].view(-1, self.group)
        live_G = self.live(rewards_GK)
        measures = {
            "reward": batch["reward"].mean(),
            "right": batch["right"].mean(),
            "live": live_G.float().mean(),
            "length": (batch["labels"] != packing.IGNORE).sum(1).float().mean(),
            "stopped": batch["stopped"].float().mean(),
        }
        kept_G = live_G if live_G.any() else torch.arange(len(live_G), device=live_G.device) == 0  # for the measures
        batch = {name: part[kept_G.repeat_interleave(self.group)] for name, part in batch.items()}
        output, learnt_BT, token_N = packed.forward(policy, batch, output_hidden_states=True)
        log_NV = (output.logits.float() / self.temperature).log_softmax(-1)
        tokens = Tokens(
            log_NV.gather(1, token_N[:, None])[:, 0],
            batch["drawn"][:, 1:][learnt_BT],
            learnt_BT.nonzero()[:, 0],
            output.hidden_states[-1][:, :-1][learnt_BT],
            self.advantages(rewards_GK[kept_G]).flatten(),
            learnt_BT.sum(1),
            batch["stopped"],
        )
        loss_N, more = self.losses(tokens, policy)
        with torch.no_grad():
            measures |= more | {
                "entropy": -(log_NV.exp() * log_NV).sum(-1).mean(),
                "drift": (tokens.log_p - tokens.drawn).abs().mean(),  # since they were drawn, and of two kernels
            }
        if self.kl or self.max_kl:
            with torch.no_grad(), reference() as model:
                reference_NV = (packed.logits(model, batch)[0].float() / self.temperature).log_softmax(-1)
            kl_N = self.distance(log_NV, reference_NV, token_N)
            measures["kl"] = kl_N.detach().mean()
            loss_N = loss_N + self.kl * kl_N
        return self.average(loss_N, tokens) if live_G.any() else 0 * loss_N.sum(), measures

    def distance(self, log_NV: Tensor, reference_NV: Tensor, token_N: Tensor) -> Tensor:
        """KL(pi || reference) where each token was drawn, (N,); by the drawn tokens alone it is Schulman's k3 (2020,
        joschu.net/blog/kl-approx.html), as in arXiv:2402.03300, eq. 4."""
        if self.kl_over == "vocabulary":
            return (log_NV.exp() * (log_NV - reference_NV)).sum(-1)
        ahead_N = (reference_NV - log_NV).gather(1, token_N[:, None])[:, 0].clamp(-FAR, FAR)
        return ahead_N.exp() - ahead_N - 1

    def watch(self, curve: list[dict[str, float]]) -> str | None:
        if self.max_kl and curve and curve[-1]["kl"] > self.max_kl:
            return f"{curve[-1]['kl']:.2g} nats a token away from the model before, and max_kl is {self.max_kl}"
        last = curve[-self.patience :]
        if len(last) == self.patience and not any(row["live"] for row in last):
            told = f"every reply had the same reward as the others of its group ({last[-1]['reward']:.2f})"
            return f"for {self.patience} steps {told}, so nothing is learnt: take other problems, or other `rewards`"
        return None


class Repeated(Online, ABC):
    """What takes several steps on one draw, and so weighs each token by how far it has moved since."""

    updates: PositiveInt = 1  # steps on the replies of one draw, each on a part of them

    def cycle(self) -> int:
        return self.updates


def surrogate(ratio_N: Tensor, advantage_N: Tensor, low: float, high: float) -> Tensor:
    """-min(w A, clip(w, 1 - low, 1 + high) A): Schulman et al. 2017, arXiv:1707.06347, eq. 7."""
    return -torch.minimum(ratio_N * advantage_N, ratio_N.clamp(1 - low, 1 + high) * advantage_N)


class Player:
    """Draws and rewards: part number i, whole groups, as the policy writes them when they are asked for."""

    def __init__(self, p: Online, given: Given):
        self.p, self.given = p, given
        self.client = None
        if p.judge:
            assert given.journals, "the stage gives a place"
            self.client = Client(p.judge, given.journals)
        asked = [(problem, chat.prompt_ids(given.tokenizer, problem["prompt"])) for problem in given.problems]
        self.asked = packing.fitting(asked, "prompts", p.context - p.max_new_tokens, lambda each: len(each[1]))
        self.known: tuple[int, dict[int, packing.Batch]] = (-1, {})

    def part(self, index: int) -> packing.Batch:
        """All parts of a cycle that this process works off are drawn at its beginning; what the others draw too is
        skipped, so that a part is the same whoever draws it."""
        p = self.p.training
        parts = self.p.cycle() * p.parts
        cycle, number = divmod(index, parts)
        if self.known[0] != cycle:
            dice = np.random.default_rng((p.seed, 1, cycle))
            count = p.part_size // self.p.group
            chosen = dice.choice(len(self.asked), count * parts, replace=count * parts > len(self.asked))
            self.known = cycle, {}
            for place, some in enumerate(np.split(chosen, parts)):
                if place % p.devices == number % p.devices:
                    self.known[1][place] = self.played(some, dice)
                else:
                    dice.integers(SEEDS)
                    dice.random(p.part_size)  # a coin for every reply
        return self.known[1][number]

    def played(self, chosen: np.ndarray, dice: np.random.Generator) -> packing.Batch:
        p, asked = self.p, [self.asked[i] for i in chosen for _ in range(self.p.group)]
        seed = int(dice.integers(SEEDS))
        said = rollouts.play(self.given.policy, self.given.tokenizer, asked, p.max_new_tokens, p.temperature, seed)
        batch = rollouts.rows(said.prompts, said.drawn.ids, said.drawn.said)
        words = zip(self.scores(batch), self.grades(asked, said.replies), strict=True)
        worth = [
            p.rewards.of(problem, reply, p.max_new_tokens, dice, *word)
            for (problem, _), reply, word in zip(asked, said.replies, words, strict=True)
        ]
        log_p_BT = torch.zeros(batch["ids"].shape, device=batch["ids"].device)
        log_p_BT[batch["labels"] != packing.IGNORE] = said.drawn.log_p[said.drawn.said]
        told = {name: torch.tensor([float(getattr(each, name)) for each in worth]) for name in ("reward", "right")}
        return batch | told | {"drawn": log_p_BT, "stopped": said.drawn.stopped}

    @torch.no_grad()
    def scores(self, batch: packing.Batch) -> list[float]:
        """The reward model's, as far as there is one."""
        if not self.given.reward_model:
            return [0.0] * len(batch["ids"])
        return reward.scores(self.given.reward_model, batch).tolist()

    def grades(self, asked: list[tuple[Record, list[int]]], replies: list[Reply]) -> list[float]:
        """The judge's, as far as there is one; it does not see what is worth nothing anyhow."""
        found = [0.0] * len(replies)
        if self.client and self.p.judge:
            shown = [number for number, reply in enumerate(replies) if honest(reply)]
            texts = [(chat.plain(asked[number][0]["prompt"]), replies[number].text) for number in shown]
            for number, grade in zip(shown, self.p.judge.grades(self.client, texts), strict=True):
                found[number] = grade
        return found

    def forecast(self) -> None:
        """Tries some prompts: of how many the replies differ in reward is the share that can teach anything."""
        dice = np.random.default_rng((self.p.training.seed, 0))
        chosen = dice.permutation(len(self.asked))[: self.p.forecast]
        at_once = max(1, self.p.training.part_size // self.p.group)
        parts = [self.played(chosen[i : i + at_once], dice) for i in range(0, len(chosen), at_once)]
        rewards_GK, right_GK = (
            torch.cat([part[name] for part in parts]).view(-1, self.p.group) for name in ("reward", "right")
        )
        live_G, ever_G = self.p.live(rewards_GK), right_GK.amax(1)
        families = defaultdict[str, list[int]](list)
        for number, i in enumerate(chosen):
            families[str(self.asked[i][0].get("family", "all"))].append(number)
        for family, some in sorted(families.items()):
            said = f"{live_G[some].float().mean():.0%} of {len(some)} prompts teach something"
            once, ever = right_GK[some].mean(), ever_G[some].mean()
            print(f"forecast: {family}: {said}; right {once:.0%}, one of {self.p.group} right {ever:.0%}")
        if live_G.float().mean() < LEAST:
            raise UserError(
                f"params.yaml: rewards: of {len(chosen)} prompts only {int(live_G.sum())} get replies of different "
                f"reward (right: {right_GK.mean():.0%}), so there is nothing to learn from: take problems that the "
                "model gets right sometimes, let it learn from solutions first (sft), or give `rewards` other weights"
            )
