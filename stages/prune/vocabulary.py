"""Vocabulary: drop the tokens that the training rows don't use. Abdaoui et al. 2020 (Load What You Need),
arXiv:2010.05609; Ushio et al. 2023 (vocabulary trimming), arXiv:2305.15020.

With a token go its row of the embedding and its row of the head, and nothing else changes. So on texts of tokens that
stay every logit is what it was, and the distribution is the old one without the others:

    p'(v | x) = p(v | x) / sum_{u stays} p(u | x)

Besides the tokens that are counted stay those that write every text (bytes, or every character), special tokens, what
the config, the post-processor and the chat template name, and whatever a token that stays is merged from
(stages/prune/parts/subwords.py): a text of tokens that stay is split as before, any other into more and shorter tokens.
What that costs is in the metric `dropped`, the share of held-out tokens that are gone, and, in a measure that doesn't
depend on the vocabulary, in eval's bits/byte.

Cost: one pass over the numbers of the training rows, and two forward passes of 64 tokens that prove it. V = vocabulary.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from stages.lib.frame import params
from stages.lib.frame.errors import UserError
from stages.prune import Pruning
from stages.prune.parts import subwords

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from stages.prune.parts.given import Given

ROLES = ("system", "user", "assistant", "tool")  # what templates write that name no role themselves
NUMBERS = ("token_id", "token_ids", "token_index", "suppress_tokens", "words_ids")  # ends of a config's fields
TOLERANCE = 1e-4  # of the largest logit: the same sums, perhaps in another order


class Vocabulary(Pruning):
    method: Literal["vocabulary"]
    calibration: None = None
    count: PositiveInt = 1  # how often a token is in the training rows at least
    size: PositiveInt | None = None  # how many tokens stay at most: the most frequent ones
    multiple: PositiveInt = 1  # their number is a multiple of it, by further tokens, the most frequent ones first

    @model_validator(mode="after")
    def even(self) -> "Vocabulary":
        if self.size and self.size % self.multiple:
            raise ValueError(f"size is {self.size}, which is no multiple of {self.multiple}")
        return self

    @torch.no_grad()
    def prune(self, model: "PreTrainedModel", given: "Given") -> "PreTrainedModel":
        kept = self.choose(model, given.tokenizer, given.counts())
        given.tokenizer = subwords.cut(given.tokenizer, kept)
        self.cut(model, torch.tensor(kept, device=model.device))
        return model

    def choose(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", count_V: Tensor) -> list[int]:
        """The tokens that stay, in ascending order."""
        state, known = subwords.state_of(tokenizer), sorted(tokenizer.get_vocab().values())
        if (kind := subwords.kind(state)) not in subwords.CUTTABLE:
            able = params.names(subwords.CUTTABLE)
            raise UserError(f"{self.model} has a tokenizer of kind {kind}; vocabulary can cut: {able}")
        if self.size and self.size >= len(known):
            raise UserError(f"size is {self.size}, but {self.model} has no more than {len(known)} tokens")
        path = subwords.Paths(state)
        needed = subwords.alphabet(state) | {box[key] for box, key in subwords.numbers_in(state)}
        needed |= set(tokenizer.all_special_ids) | written(tokenizer) | set(self.named(model, set(known)))
        kept = set().union(*map(path, needed))
        if self.size and self.size < len(kept):
            why = "alphabet, special tokens and chat template alone"
            raise UserError(f"size is {self.size}, but {self.model} needs {len(kept)} tokens for {why}")

        frequent = sorted(known, key=lambda number: (-int(count_V[number]), number))
        seen = [number for number in frequent if count_V[number] >= self.count]
        fill(kept, map(path, seen), self.size or len(known))
        whole = min(-len(kept) % self.multiple + len(kept), len(known))
        while len(kept) < whole:  # a token may fit only after those that it is made of
            fill(kept, map(path, frequent), whole)
        return sorted(kept)

    def named(self, model: "PreTrainedModel", known: set[int]) -> Iterator[int]:
        """What the config and the generation config number."""
        for _, name, value in token_fields(model):
            for number in flat(value):
                if number not in known:
                    raise UserError(f"{self.model}: its config has {name} {number}, its tokenizer no such token")
                yield number

    def cut(self, model: "PreTrainedModel", kept_V: Tensor) -> None:
        """Rows of the embedding and the head, in place, and the numbers in the config."""
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
            raise self.refusal(model, "cut an embedding and a head that is a Linear, and it has others")
        probe_T = torch.arange(0, len(kept_V), max(1, len(kept_V) // 64), device=kept_V.device)
        expected_TV = model(kept_V[probe_T][None], use_cache=False).logits[0][:, kept_V]

        rows = {id(rows): rows for rows in (embedding.weight, head.weight, head.bias) if rows is not None}
        for weight in rows.values():  # a tied one once
            weight[: len(kept_V)] = weight[kept_V]
        model.resize_token_embeddings(len(kept_V), mean_resizing=False)
        new = {old: number for number, old in enumerate(kept_V.tolist())}
        for config, name, value in token_fields(model):
            setattr(config, name, renumbered(value, new))
        if embedding.padding_idx is not None:
            embedding.padding_idx = model.config.pad_token_id

        strayed = (model(probe_T[None], use_cache=False).logits[0] - expected_TV).abs().max()
        if not strayed <= TOLERANCE * expected_TV.abs().max():
            raise self.refusal(model, "cut networks that know tokens by embedding and head alone: its logits changed")


def written(tokenizer: "PreTrainedTokenizerFast") -> set[int]:
    """The tokens of the chat template, and of a space."""
    templates = tokenizer.chat_template or ""
    every = templates.values() if isinstance(templates, dict) else [templates]
    texts = [" ", *ROLES, *(text for template in every for text in subwords.literals(template))]
    return {number for text in texts for number in tokenizer.encode(text, add_special_tokens=False)}


def fill(kept: set[int], paths: Iterable[set[int]], size: int) -> None:
    """Add one path after another, as far as there is room."""
    for path in paths:
        if len(kept) == size:
            return
        if len(kept | path) <= size:
            kept |= path


def token_fields(model: "PreTrainedModel") -> list[tuple[Any, str, Any]]:
    """Each config with its fields that number tokens, and their values."""
    both = [config for config in (model.config, model.generation_config) if config]
    fields = [(config, name, value) for config in both for name, value in config.to_dict().items()]
    return [field for field in fields if field[1].endswith(NUMBERS) and field[2] is not None]


def flat(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    else:
        for inner in value:
            yield from flat(inner)


def renumbered(value: Any, new: dict[int, int]) -> Any:
    return new[value] if isinstance(value, int) else [renumbered(inner, new) for inner in value]
