"""Tokenize, one variant: documents and problems -> tokenizer and packed rows. See stages/tokenize/__init__.py."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cyclopts

from stages.lib.frame import files, params, tracking
from stages.lib.frame.errors import UserError
from stages.lib.store import records, tokens
from stages.lib.text import problems


def main(variant: str, *, documents: Path, problems: Path, out: Path) -> None:
    technique, p = params.load("tokenize", variant)

    with tracking.run("tokenize", variant, p, out, inputs=[documents, problems]) as run:
        texts = [row["text"] for row in records.load(documents, "train")]
        chats = records.load(problems, "train")
        tokenizer = technique.train(sample(texts, chats, p), p)

        train = mix(tokenizer, texts, chats, p.train_tokens, p)
        held_texts = [row["text"] for row in records.load(documents, "held_out")]
        held = mix(tokenizer, held_texts, records.load(problems, "held_out"), p.held_out_tokens, p)

        run.metrics["vocab_size"] = len(tokenizer)
        run.metrics["bytes_per_token"] = bytes_per_token(tokenizer, held_texts)
        run.metrics |= {"train_tokens": train.size, "held_out_tokens": held.size}

        with files.writing(out / "tokenizer") as folder:
            tokenizer.save_pretrained(folder)
        about = {
            "vocab_size": len(tokenizer),
            "context": p.context,
            "tokenizer": files.digest(out / "tokenizer" / "tokenizer.json"),
        }
        tokens.save(out / "tokens", about, train=train, held_out=held)


def sample(texts: list[str], chats: list[records.Record], p: Any) -> Iterator[str]:
    """Text to learn the vocabulary from: documents and problems drawn until `sample_bytes`, half of it each at most."""
    import numpy as np

    order = np.random.default_rng(p.seed)
    for pool in (texts, [f"{row['prompt']}\n{row['solution']}" for row in chats]):
        left = p.sample_bytes // 2
        for i in order.permutation(len(pool)):
            if left <= 0:
                break
            yield pool[i][:left]
            left -= len(pool[i])


def mix(tokenizer: Any, texts: list[str], chats: list[records.Record], budget: int, p: Any) -> Any:
    """Rows of documents and of problems in the asked proportion, shuffled; (N, context)."""
    import numpy as np

    order = np.random.default_rng(p.seed)
    solved = (
        problems.chat_ids(tokenizer, chats[i]["prompt"], chats[i]["solution"]) for i in order.permutation(len(chats))
    )
    prose = encode(tokenizer, [texts[i] for i in order.permutation(len(texts))])
    problem_rows = tokens.pack(take(solved, round(budget * p.problem_share)), p.context, len(tokenizer))
    prose_rows = tokens.pack(take(prose, budget - problem_rows.size), p.context, len(tokenizer))
    if not len(problem_rows) or not len(prose_rows):
        raise UserError(f"params.yaml: tokenize.*.context is {p.context}: the data do not fill one such row")
    rows = np.concatenate([problem_rows, prose_rows])
    return rows[order.permutation(len(rows))]


def encode(tokenizer: Any, texts: list[str]) -> Iterator[list[int]]:
    for text in texts:
        yield [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]


def take(sequences: Iterator[list[int]], budget: int) -> Iterator[list[int]]:
    """Sequences until `budget` tokens are given; the last one is cut there."""
    for ids in sequences:
        if budget <= 0:
            return
        yield ids[:budget]
        budget -= len(ids)


def bytes_per_token(tokenizer: Any, texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / sum(len(ids) - 1 for ids in encode(tokenizer, texts))


if __name__ == "__main__":
    cyclopts.run(main)
