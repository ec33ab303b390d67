"""Prompts that a teacher makes of others. Evol-Instruct: Xu et al. 2023, arXiv:2304.12244, section 3.2.

Each round rewrites every prompt of the last by one operation. What is empty, refuses, is too long or repeats its
instructions is dropped (section 3.3), and so is what says the same as a prompt before it, exactly or nearly.
"""

import random
import re

from stages.lib.store.records import Record
from stages.lib.text import duplicates
from stages.traces.parts.answers import Ask

OPERATIONS = {
    "constrain": "Rewrite it with one more constraint or requirement.",
    "deepen": "Rewrite it so that it goes deeper and further into its subject.",
    "concretise": "Rewrite it with more specific ideas in place of general ones.",
    "reason": "Rewrite it so that answering takes several explicit steps of reasoning.",
    "broaden": "Write a new prompt of the same field, as long and as difficult, but rarer.",
}
FORM = "Here is a prompt. {operation} Answer with the new prompt only, in {words} words at most.\nPrompt: {prompt}"
REFUSAL = re.compile(r"^\W*(i'?m sorry|sorry|i can(no|')?t|i am unable|i'm unable|as an ai)\b", re.IGNORECASE)
LEAKED = re.compile(r"here is a prompt|with the new prompt only|new prompt:|rewritten prompt", re.IGNORECASE)


def evolve(seeds: list[Record], ask: Ask, rounds: int, words: int, seed: int) -> list[Record]:
    """The new prompts of all rounds; each says where it comes from and by which operation."""
    exact = {duplicates.plain(row["prompt"]) for row in seeds}
    near, last, out = duplicates.Seen(row["prompt"] for row in seeds), seeds, []
    for number in range(rounds):
        draw = [random.Random(f"{seed}/{number}/{row['id']}").choice(list(OPERATIONS)) for row in last]
        replies = ask([instruction(row["prompt"], name, words) for row, name in zip(last, draw, strict=True)], number)
        new = []
        for row, name, prompt in zip(last, draw, map(str.strip, replies), strict=True):
            if usable(prompt, words) and duplicates.plain(prompt) not in exact and near.add(prompt):
                exact.add(duplicates.plain(prompt))
                about = {"id": f"{row['id']}/{name}", "family": row.get("family", ""), "evolved_from": row["id"]}
                new.append(about | {"operation": name, "prompt": prompt})
        out, last = out + new, new
    return out


def instruction(prompt: str, operation: str, words: int) -> str:
    return FORM.format(operation=OPERATIONS[operation], words=words, prompt=prompt)


def usable(prompt: str, words: int) -> bool:
    return 0 < len(prompt.split()) <= words and not REFUSAL.search(prompt) and not LEAKED.search(prompt)
