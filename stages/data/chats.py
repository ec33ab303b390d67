"""Conversations from files of one's own: questions with answers, or several turns, in the shapes that other tools use.

Which shape it is, the first row says (stages/data/parts/conversations.py), and the log says it too. Every reply is
learnt; what stands behind the last one is not. Rows in which nobody replies, or with nothing, are left out and counted.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from stages.data import Dataset
from stages.data.parts import conversations, reading
from stages.lib.store.records import Record


class Chats(Dataset):
    method: Literal["chats"]
    prompt_field: str | None = None  # where neither is among the names that are known
    reply_field: str | None = None

    @model_validator(mode="after")
    def both_fields(self) -> "Chats":
        if (self.prompt_field is None) != (self.reply_field is None):
            raise ValueError("prompt_field and reply_field belong together: give both, or none")
        return self

    def records(self, source: Path) -> Iterator[Record]:
        names = (self.prompt_field, self.reply_field) if self.prompt_field and self.reply_field else ()
        for place, name, row in reading.all_rows(source, conversations.fields(*names)):
            if not names:
                names = conversations.shape(row, place)
                print(f"{place}: a conversation in {' and '.join(names)}, as all others are read")
            said = conversations.conversation(row, names, place)
            reply = said.pop()["content"] if said else ""
            prompt = conversations.prompt(said) if said else ""
            yield {"id": name, "family": "chat", "prompt": prompt, "solution": reply}

    def left_out(self, source: Path) -> list[str]:
        return [str(file.relative_to(source)) for file in reading.with_fields(source)[1]]
