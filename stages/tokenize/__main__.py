"""Tokenize, one variant: documents and problems -> tokenizer and packed rows. See stages/tokenize/__init__.py."""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from stages.lib.frame import files, params, processes, progress, tracking
from stages.lib.frame.errors import UserError, command
from stages.lib.store import records, tokens
from stages.lib.store.records import Record
from stages.lib.text import chat, packing
from stages.tokenize import Tokenization

if TYPE_CHECKING:
    from tqdm import tqdm
    from transformers import PreTrainedTokenizerFast

PIECE = 500_000  # characters that are encoded at a time

Rows = records.Rows | list[Record]


def main(
    variant: str,
    *,
    documents: Path,
    problems: Path,
    code: Path,
    checkpoints: Path,
    out: Path,
    params_file: Path = params.PARAMS_FILE,
) -> None:
    technique = params.load(Tokenization, variant, params_file)
    with tracking.run("tokenize", variant, technique, out, code, [documents, problems]) as run:
        texts, held_texts = (records.Rows(documents, split) for split in records.SPLITS)
        solved, held_solved = (records.Rows(problems, split) for split in records.SPLITS)
        tokenizer = technique.train(sample(texts, solved, technique.sample_bytes or 0, technique.seed))
        os.environ["TOKENIZERS_PARALLELISM"] = "true"  # of the encoding: it is the same in any order
        place = run.place(checkpoints, technique)
        train = mix(tokenizer, texts, solved, technique.train_tokens, technique, place / "train")
        held_out = mix(tokenizer, held_texts, held_solved, technique.held_out_tokens, technique, place / "held_out")
        if not train or not held_out:
            where = f"{params_file}: tokenize.{variant}.context"
            raise UserError(f"{where} is {technique.context}: the data do not fill a row of each kind and split")

        run.metrics["vocab_size"] = len(tokenizer)
        run.metrics["bytes_per_token"] = bytes_per_token(tokenizer, held_texts)
        run.metrics |= {"train_tokens": train * technique.context, "held_out_tokens": held_out * technique.context}

        with files.writing(out / "tokenizer") as folder:
            tokenizer.save_pretrained(folder)
        file = out / "tokenizer" / "tokenizer.json"
        about = {"vocab_size": len(tokenizer), "context": technique.context, "tokenizer": files.digest(file)}
        rows = {split: place / split / "rows.npy" for split in records.SPLITS}
        tokens.save(out / "tokens", about, file, **rows)
        files.remove(place)


def sample(texts: Rows, solved: Rows, size: int, seed: int) -> Iterator[str]:
    """Text to learn the vocabulary from: documents and problems drawn until `size` bytes, half of it each at most."""
    order = np.random.default_rng(seed)
    for pool in (texts, solved):
        left = size // 2
        for i in order.permutation(len(pool)):
            if left <= 0:
                break
            yield (text := said(pool[i]))[:left]
            left -= len(text)


def said(row: Record) -> str:
    return row["text"] if "text" in row else f"{row['prompt']}\n{packing.reply(row)}"


def mix(
    tokenizer: "PreTrainedTokenizerFast", texts: Rows, solved: Rows, budget: int, p: Tokenization, place: Path
) -> int:
    """Write rows of problems and of documents in the wanted proportion, shuffled, to rows.npy: (N, context). Returns N,
    0 if one kind has none. `place` is a folder for this split of this run: what it holds was encoded before a kill."""
    place.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(p.seed)
    dtype = tokens.dtype(len(tokenizer))
    piece = min(PIECE, budget)
    chats = encoded(partial(chats_ids, tokenizer), drawn(solved, order), piece, dtype, place / "problems")
    prose = encoded(partial(prose_ids, tokenizer), drawn(texts, order), piece, dtype, place / "documents")
    with (place / "rows").open("wb") as file, progress.bar(budget, "token", scale=True) as bar:
        problem_rows = fill(file, chats, round(budget * p.problem_share), p.context, bar)
        prose_rows = fill(file, prose, budget - problem_rows * p.context, p.context, bar)
    if not problem_rows or not prose_rows:
        return 0
    shuffle(place / "rows", order.permutation(problem_rows + prose_rows), p.context, dtype, place / "rows.npy")
    return problem_rows + prose_rows


def drawn(rows: Rows, order: np.random.Generator) -> Iterator[Record]:
    return map(rows.__getitem__, order.permutation(len(rows)))


def prose_ids(tokenizer: "PreTrainedTokenizerFast", rows: list[Record]) -> Iterator[list[int]]:
    """Each document's token ids, from its start token on."""
    start = chat.start(tokenizer)
    return (start + ids for ids in chat.texts_ids(tokenizer, [row["text"] for row in rows]))


def chats_ids(tokenizer: "PreTrainedTokenizerFast", rows: list[Record]) -> Iterator[list[int]]:
    return (chat.chat_ids(tokenizer, row["prompt"], packing.reply(row)) for row in rows)


def encoded(
    ids_of: Callable[[list[Record]], Iterable[list[int]]],
    rows: Iterable[Record],
    characters: int,
    dtype: np.dtype,
    place: Path,
) -> Iterator[np.ndarray]:
    """The rows' token ids, a piece at a time, each kept in a file that outlives a kill."""
    for number, piece in enumerate(processes.pieces(rows, lambda row: len(said(row)), characters)):
        if not (file := place / f"{number:06}.npy").exists():
            ids = np.fromiter(chain.from_iterable(ids_of(piece)), dtype)
            with files.writing(file) as temporary, temporary.open("wb") as out:
                np.save(out, ids)
        yield np.load(file)


def fill(file: IO[bytes], pieces: Iterator[np.ndarray], budget: int, context: int, bar: "tqdm") -> int:
    """Append at most `budget` tokens, in whole rows; the number of those."""
    begin, left, width = file.tell(), budget, 0
    while left > 0 and (ids := next(pieces, None)) is not None:
        file.write(ids[:left].tobytes())
        bar.update(len(ids[:left]))
        left, width = left - len(ids[:left]), context * ids.itemsize
    rows = (budget - left) // context
    file.seek(begin + rows * width)
    file.truncate()
    return rows


def shuffle(rows: Path, order: np.ndarray, context: int, dtype: np.dtype, out: Path) -> None:
    """Rows in another order as .npy, row by row: a memory map would in the end hold them all."""
    about = {"descr": dtype.str, "fortran_order": False, "shape": (len(order), context)}
    width = context * dtype.itemsize
    with rows.open("rb", buffering=0) as source, out.open("wb") as target:
        np.lib.format.write_array_header_1_0(target, about)
        for i in order:
            source.seek(i * width)
            target.write(source.read(width))


def bytes_per_token(tokenizer: "PreTrainedTokenizerFast", texts: Rows) -> float:
    size = count = 0
    for piece in processes.pieces((row["text"] for row in texts), len, PIECE):
        size += sum(len(text.encode()) for text in piece)
        count += sum(map(len, chat.texts_ids(tokenizer, piece)))
    return size / count


if __name__ == "__main__":
    command(main)
