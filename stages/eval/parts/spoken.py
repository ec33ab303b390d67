"""What a model says, for people to read: answers to a few problems, continuations of a few held-out texts."""

from typing import Any

from stages.eval import accuracy
from stages.eval.parts import held_out
from stages.lib.runtimes.base import Runtime
from stages.lib.text import problems

PER_FAMILY, CONTINUATIONS, OPENING, LENGTH = 1, 3, 24, 48  # problems, texts, tokens given, tokens asked for


def collect(runtime: Runtime, data: held_out.HeldOut, p: accuracy.Params) -> dict[str, list[dict[str, Any]]]:
    """{"answers": [{family, prompt, expected, answer, correct}], "continuations": [{opening, continuation}]}"""
    asked = held_out.per_family(data.problems, PER_FAMILY)
    answers = accuracy.answer(runtime, asked, p)
    return {
        "answers": [
            {
                "family": row["family"],
                "prompt": row["prompt"],
                "expected": row["answer"],
                "answer": text,
                "correct": problems.correct(row, text),
            }
            for row, text in zip(asked, answers, strict=True)
        ],
        "continuations": continuations(runtime, data),
    }


def continuations(runtime: Runtime, data: held_out.HeldOut) -> list[dict[str, str]]:
    tokenizer = runtime.tokenizer
    rows = held_out.spread(data.documents, CONTINUATIONS)
    openings = [tokenizer.encode(row["text"], add_special_tokens=False)[:OPENING] for row in rows]
    prompts = [[held_out.start(tokenizer), *ids] for ids in openings]
    texts = runtime.generate(prompts, LENGTH, tokenizer.eos_token_id)
    return [
        {"opening": tokenizer.decode(opening), "continuation": tokenizer.decode(ids, skip_special_tokens=True)}
        for opening, ids in zip(openings, texts, strict=True)
    ]
