"""Preferences from files of one's own: two replies to one prompt, of which people, or a judge, liked one better.

prompt, chosen and rejected are texts or lists of messages, as TRL takes them; without a prompt both begin with it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from stages.data import Dataset
from stages.data.parts import conversations, reading
from stages.lib.store.records import Record


class Preferences(Dataset):
    method: Literal["preferences"]

    def records(self, source: Path) -> Iterator[Record]:
        for place, name, row in reading.all_rows(source, conversations.fields()):
            prompt, chosen, rejected = conversations.preference(row, place)
            yield {"id": name, "family": "preference", "prompt": prompt, "chosen": chosen, "rejected": rejected}

    def left_out(self, source: Path) -> list[str]:
        return [str(file.relative_to(source)) for file in reading.with_fields(source)[1]]
