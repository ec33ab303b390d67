"""What techniques share whose rows come from files with fields."""

from abc import ABC
from pathlib import Path
from typing import Literal

from stages.data import Dataset
from stages.data.parts import conversations, reading
from stages.lib.text.chat import Prompt


class Table(Dataset, ABC):
    def left_out(self, source: Path) -> list[str]:
        return [str(file.relative_to(source)) for file in reading.with_fields(source)[1]]


class Talk(Table, ABC):
    tools: Literal["template", "system"] = "template"  # where a column of tools goes: its place, or the system's words

    def asked(self, prompt: Prompt) -> Prompt:
        return conversations.in_system(prompt) if self.tools == "system" else prompt
