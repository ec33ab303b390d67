"""Tokens that need each other: which ones a tokenizer can't do without, and the same tokenizer with some of its tokens.

For every text whose tokens all stay, the tokenizer that `cut` leaves gives the same tokens.

BPE merges pairs by rank, so a token of a text came about inside its own span of it, by the merges that make it when it
stands alone. With those merges and the tokens between (`path`), and of the others only such as were there before, every
step finds the same pair as the best one. A token that no merge leads to is looked up whole, before any merge
(`ignore_merges`: Llama 3), or never.
Unigram takes the segmentation with the highest sum of scores. One of fewer tokens is still the highest among fewer; an
unknown character costs 10 more than the lowest score, so the token with that score stays.

A tokenizer is what tokenizer.json holds: the state of `tokenizers`.
"""

import copy
import json
from collections.abc import Iterator
from math import inf
from typing import TYPE_CHECKING, Any

from stages.lib.frame.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

State = dict[str, Any]

CUTTABLE = ("BPE", "Unigram")
SPACE = "\u2581"  # how SentencePiece writes a space: a decoder looks for the token, not for its bytes
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def state_of(tokenizer: "PreTrainedTokenizerFast") -> State:
    return json.loads(tokenizer.backend_tokenizer.to_str())


def kind(state: State) -> str:
    """One of CUTTABLE, or what it is instead."""
    model = state["model"]
    affixed = model["type"] == "BPE" and (model["continuing_subword_prefix"] or model["end_of_word_suffix"])
    return "BPE with marked subwords" if affixed else model["type"]


def subwords(state: State) -> dict[str, int]:
    """The tokens that text is split into, added ones apart."""
    known = state["model"]["vocab"]
    return known if isinstance(known, dict) else {token: number for number, (token, _) in enumerate(known)}


def alphabet(state: State) -> set[int]:
    """What writes every text: the bytes that unknown characters fall back to, or else every character there is."""
    model, known = state["model"], subwords(state)
    fallback = model.get("byte_fallback") and all(byte in known for byte in BYTES)
    letters = {known[byte] for byte in BYTES} if fallback else {known[token] for token in known if len(token) == 1}
    unknown = known.get(model["unk_token"]) if model["type"] == "BPE" else model["unk_id"]
    lowest = min(range(len(known)), key=lambda i: model["vocab"][i][1]) if model["type"] == "Unigram" else None
    return letters | ({unknown, lowest, known.get(SPACE)} - {None})


class Paths:
    """What a token is made of, itself included."""

    def __init__(self, state: State):
        self.numbers = subwords(state)
        self.tokens = {number: token for token, number in self.numbers.items()}
        self.ranks = {tuple(pair): rank for rank, pair in enumerate(state["model"].get("merges", []))}

    def __call__(self, number: int) -> set[int]:
        return {number} | {self.numbers[part] for part in self.merged(self.tokens.get(number, ""))}

    def merged(self, token: str) -> set[str]:
        """Characters and all that is merged on the way to a token; none if merges don't lead there."""
        symbols = list(token)
        passed = set(symbols)
        while len(symbols) > 1:
            pairs = list(zip(symbols, symbols[1:], strict=False))
            place = min(range(len(pairs)), key=lambda i: self.ranks.get(pairs[i], inf))
            if pairs[place] not in self.ranks:
                return set()
            symbols[place : place + 2] = ["".join(pairs[place])]
            passed.add(symbols[place])
        return passed & self.numbers.keys()


def literals(template: str) -> Iterator[str]:
    """The texts in a chat template: what stands between its tags, and the strings inside them."""
    from jinja2 import Environment

    lexer = Environment(trim_blocks=True, lstrip_blocks=True).lexer  # as transformers renders them
    yield from (token.value for token in lexer.tokenize(template) if token.type in ("data", "string"))


def numbers_in(state: State) -> Iterator[tuple[Any, Any]]:
    """Where token numbers stand besides the vocabulary, as (container, key)."""
    last = state["post_processor"] or {}
    for step in last.get("processors", [last]):
        for special in step.get("special_tokens", {}).values():
            yield from ((special["ids"], place) for place in range(len(special["ids"])))
        yield from ((step[name], 1) for name in ("sep", "cls") if name in step)
    if state["padding"]:
        yield state["padding"], "pad_id"


def cut(tokenizer: "PreTrainedTokenizerFast", kept: list[int]) -> "PreTrainedTokenizerFast":
    """The tokenizer with these tokens alone, numbered anew in their old order; whole paths, or texts change."""
    from tokenizers import Tokenizer

    state, new = state_of(tokenizer), {old: number for number, old in enumerate(kept)}
    names = {new[number]: token for token, number in tokenizer.get_vocab().items() if number in new}
    model = state["model"]
    if model["type"] == "BPE":
        model["vocab"] = {token: new[number] for token, number in model["vocab"].items() if number in new}
        stay = model["vocab"]
        model["merges"] = [[a, b] for a, b in model["merges"] if a in stay and b in stay and a + b in stay]
    else:
        model["unk_id"] = None if model["unk_id"] is None else new[model["unk_id"]]
        model["vocab"] = [piece for number, piece in enumerate(model["vocab"]) if number in new]
    state["added_tokens"] = [each | {"id": new[each["id"]]} for each in state["added_tokens"] if each["id"] in new]
    for container, key in numbers_in(state):
        container[key] = new[container[key]]
    smaller: Any = copy.deepcopy(tokenizer)
    smaller._tokenizer = Tokenizer.from_str(json.dumps(state))
    if smaller.get_vocab() != {token: number for number, token in names.items()}:
        raise UserError("vocabulary can cut only tokenizers whose added tokens follow the others; this one's don't")
    return smaller
