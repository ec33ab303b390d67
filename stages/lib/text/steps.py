"""A reply as steps: each line that says something, with the breaks around it."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

STEP = re.compile(r"\s*\S[^\n]*(?:\n\s*)?")
FINISHED = re.compile(r"\s*\S[^\n]*\n\s*")


def of(text: str) -> list[str]:
    """Together they are the text."""
    return STEP.findall(text)


def ends(tokenizer: "PreTrainedTokenizerFast", reply: list[int]) -> list[int]:
    """The place of each step's last token; of the last step it is that which ends the reply."""
    found, line = list[int](), ""
    for place, token in enumerate(reply):
        piece = str(tokenizer.decode([token], skip_special_tokens=True))
        if piece.strip() and FINISHED.fullmatch(line):
            found.append(place - 1)
            line = ""
        line += piece
    return [*found, len(reply) - 1]
