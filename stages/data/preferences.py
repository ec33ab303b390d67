"""Preferences from files of one's own: which replies people, or a judge, liked.

Pairs      chosen and rejected: two replies to one prompt, of which one was liked better.
Unpaired   one reply and its label: whether it was liked (true or false). Ethayarajh et al. 2024, arXiv:2402.01306,
           section 4.

Their shapes are those of stages/data/parts/conversations.py. Which of the two a file holds, its first row says, and the
log says it too.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from stages.data.parts import conversations, reading
from stages.data.parts.tables import Talk
from stages.lib.store.records import Record


class Preferences(Talk):
    method: Literal["preferences"]

    def records(self, source: Path) -> Iterator[Record]:
        unpaired = None
        for place, name, row in reading.all_rows(source, conversations.fields()):
            if unpaired is None and (unpaired := conversations.unpaired(row)):
                print(f"{place}: unpaired, a reply and whether it was liked, as all others are read")
            if unpaired:
                prompt, reply, liked = conversations.verdict(row, place)
                learnt: Record = {"solution": reply, "liked": liked}
            else:
                prompt, chosen, rejected = conversations.preference(row, place)
                learnt = {"chosen": chosen, "rejected": rejected}
            yield {"id": name, "family": "preference", "prompt": self.asked(prompt)} | learnt
