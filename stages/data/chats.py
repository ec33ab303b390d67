"""Conversations from files of one's own: questions with answers, or several turns, in the shapes that other tools use.

Which shape it is, the first row says (stages/data/parts/conversations.py), and the log says it too. Every reply is
learnt, or with `learn: last` the last alone; what stands behind it is not. Rows in which nobody replies, or with
nothing, are left out and counted.

How answers are scored, the rows say (stages/lib/text/problems.py): by the pattern in `pattern_field` where a row has
one, else as numbers where the last reply of every row is one, else as texts. `scorer` names the latter two.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from stages.data.parts import conversations, reading
from stages.data.parts.tables import Talk
from stages.lib.frame.errors import UserError
from stages.lib.store.records import Record
from stages.lib.text import problems

Names = tuple[str, ...]


class Chats(Talk):
    method: Literal["chats"]
    prompt_field: str | None = None  # where neither is among the names that are known
    reply_field: str | None = None
    pattern_field: str | None = None  # holds a regular expression that right answers match
    scorer: Literal["number", "text"] | None = None  # none: as the replies are
    learn: Literal["every", "last"] = "every"  # of the replies

    @model_validator(mode="after")
    def both_fields(self) -> "Chats":
        if (self.prompt_field is None) != (self.reply_field is None):
            raise ValueError("prompt_field and reply_field belong together: give both, or none")
        return self

    def records(self, source: Path) -> Iterator[Record]:
        names = self.names(source)
        scored = {"scorer": "number"} if self.numbers(source, names) else {}
        learnt = {"learn": "last"} if self.learn == "last" else {}
        for place, name, row in self.rows(source, names):
            said = conversations.conversation(row, names, place)
            reply = said.pop()["content"] if said else ""
            prompt = self.asked(conversations.prompt(said)) if said else ""
            record = {"id": name, "family": "chat", "prompt": prompt, "solution": reply}
            yield record | scored | self.pattern(row, place) | learnt

    def rows(self, source: Path, names: Names) -> Iterator[tuple[str, str, Record]]:
        more = (self.pattern_field,) if self.pattern_field else ()
        return reading.all_rows(source, conversations.fields(*names, *more))

    def names(self, source: Path) -> Names:
        """The fields that hold a conversation."""
        if self.prompt_field and self.reply_field:
            return self.prompt_field, self.reply_field
        for place, _, row in self.rows(source, ()):
            names = conversations.shape(row, place)
            print(f"{place}: a conversation in {' and '.join(names)}, as all others are read")
            return names
        return ()

    def numbers(self, source: Path, names: Names) -> bool:
        """Whether answers are scored as numbers: if every reply is one, as far as there are replies."""
        if self.scorer == "text":
            return False
        for place, _, row in self.rows(source, names):
            said = conversations.conversation(row, names, place)
            reply = said[-1]["content"] if said else ""
            if reply.strip() and not problems.is_number(reply):
                if self.scorer == "number":
                    raise UserError(f"{place}: reply {reply!r:.40} is no number, but `scorer` says that all are")
                return False
        return True

    def pattern(self, row: Record, place: str) -> Record:
        """How a row with a pattern says so; a row whose pattern is empty has none."""
        if self.pattern_field is None:
            return {}
        if self.pattern_field not in row:
            fields = ", ".join(row)
            raise UserError(f"{place}: no field '{self.pattern_field}' (pattern_field); its fields are: {fields}")
        written = row[self.pattern_field]
        return {"scorer": "pattern", "pattern": problems.check_pattern(written, place)} if written else {}
