"""Tokenize, one variant: documents and problems -> tokenizer and packed rows. See stages/tokenize/__init__.py."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.lib.frame import files, params, tracking
from stages.lib.frame.errors import UserError, command
from stages.lib.store import records, tokens
from stages.lib.store.records import Record
from stages.lib.text import chat, packing
from stages.tokenize import Tokenization

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def main(
    variant: str, *, documents: Path, problems: Path, code: Path, out: Path, params_file: Path = params.PARAMS_FILE
) -> None:
    technique = params.load(Tokenization, variant, params_file)
    with tracking.run("tokenize", variant, technique, out, code, [documents, problems]) as run:
        texts, held_texts = ([row["text"] for row in records.load(documents, split)] for split in ("train", "held_out"))
        solved, held_solved = (records.load(problems, split) for split in ("train", "held_out"))
        tokenizer = technique.train(sample(texts, solved, technique.sample_bytes or 0, technique.seed))
        train = mix(tokenizer, texts, solved, technique.train_tokens, technique)
        held_out = mix(tokenizer, held_texts, held_solved, technique.held_out_tokens, technique)
        if not len(train) or not len(held_out):
            place = f"{params_file}: tokenize.{variant}.context"
            raise UserError(f"{place} is {technique.context}: the data do not fill a row of each kind and split")

        run.metrics["vocab_size"] = len(tokenizer)
        run.metrics["bytes_per_token"] = bytes_per_token(tokenizer, held_texts)
        run.metrics |= {"train_tokens": train.size, "held_out_tokens": held_out.size}

        with files.writing(out / "tokenizer") as folder:
            tokenizer.save_pretrained(folder)
        file = out / "tokenizer" / "tokenizer.json"
        about = {"vocab_size": len(tokenizer), "context": technique.context, "tokenizer": files.digest(file)}
        tokens.save(out / "tokens", about, file, train=train, held_out=held_out)


def sample(texts: list[str], solved: list[Record], size: int, seed: int) -> Iterator[str]:
    """Text to learn the vocabulary from: documents and problems drawn until `size` bytes, half of it each at most."""
    order = np.random.default_rng(seed)
    for pool in (texts, [f"{row['prompt']}\n{packing.reply(row)}" for row in solved]):
        left = size // 2
        for i in order.permutation(len(pool)):
            if left <= 0:
                break
            yield pool[i][:left]
            left -= len(pool[i])


def mix(
    tokenizer: "PreTrainedTokenizerFast", texts: list[str], solved: list[Record], budget: int, p: Tokenization
) -> np.ndarray:
    """Rows of problems and of documents in the wanted proportion, shuffled; (N, context), none if one kind has none."""
    order = np.random.default_rng(p.seed)
    chats = (
        chat.chat_ids(tokenizer, solved[i]["prompt"], packing.reply(solved[i])) for i in order.permutation(len(solved))
    )
    prose = encode(tokenizer, [texts[i] for i in order.permutation(len(texts))])
    problem_rows = tokens.pack(take(chats, round(budget * p.problem_share)), p.context, len(tokenizer))
    prose_rows = tokens.pack(take(prose, budget - problem_rows.size), p.context, len(tokenizer))
    if not len(problem_rows) or not len(prose_rows):
        return problem_rows[:0]
    rows = np.concatenate([problem_rows, prose_rows])
    return rows[order.permutation(len(rows))]


def encode(tokenizer: "PreTrainedTokenizerFast", texts: list[str]) -> Iterator[list[int]]:
    """Each document's token ids, from its start token on."""
    start = chat.start(tokenizer)
    for text in texts:
        yield [*start, *chat.text_ids(tokenizer, text)]


def take(sequences: Iterator[list[int]], budget: int) -> Iterator[list[int]]:
    """Sequences until `budget` tokens are given; the last one is cut there."""
    for ids in sequences:
        if budget <= 0:
            return
        yield ids[:budget]
        budget -= len(ids)


def bytes_per_token(tokenizer: "PreTrainedTokenizerFast", texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / sum(len(chat.text_ids(tokenizer, text)) for text in texts)


if __name__ == "__main__":
    command(main)
