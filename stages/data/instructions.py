"""Templated instructions from documents, whose right answer the document itself gives (as in FLAN, arXiv:2109.01652).

Three kinds in turn: continue a passage, say which word is missing, name the source.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from stages.data import Dataset
from stages.lib.store.records import Record, load


class Instructions(Dataset):
    method: Literal["instructions"]
    count: PositiveInt
    words: PositiveInt = 24  # length of a passage

    def records(self, source: Path) -> Iterator[Record]:
        for split, count in {"train": self.count, "held_out": round(self.count * self.held_out)}.items():
            documents = load(source, split)
            for number in range(count):
                draw = random.Random(f"{self.seed}/{split}/{number}")
                document = draw.choice(documents)
                template = (continue_passage, missing_word, name_source)[number % 3]
                prompt, solution = template(passage(document["text"], self.words, draw), document["source"], draw)
                about = {"id": f"{document['id']}/{number}", "family": template.__name__, "split": split}
                yield about | {"prompt": prompt, "solution": solution}


def passage(text: str, words: int, draw: random.Random) -> list[str]:
    """A run of words that begins at a sentence, if there is one."""
    starts = [match.end() for match in re.finditer(r"[.!?]\s+(?=[A-Z])", text[: -words * 8])] or [0]
    begin = draw.choice(starts)
    return text[begin : begin + words * 12].split()[:words]


def continue_passage(words: list[str], _source: str, _draw: random.Random) -> tuple[str, str]:
    half = len(words) // 2
    return f"Continue this text: {' '.join(words[:half])}", " ".join(words[half:])


def missing_word(words: list[str], _source: str, draw: random.Random) -> tuple[str, str]:
    gap = draw.randrange(len(words))
    shown = [*words[:gap], "____", *words[gap + 1 :]]
    return f"Which word is missing? {' '.join(shown)}", words[gap]


def name_source(words: list[str], source: str, _draw: random.Random) -> tuple[str, str]:
    return f"Which book is this from? {' '.join(words)}", source.replace("-", " ")
