"""What techniques share whose rows come from files with fields."""

from abc import ABC
from pathlib import Path

from stages.data import Dataset
from stages.data.parts import reading


class Table(Dataset, ABC):
    def left_out(self, source: Path) -> list[str]:
        return [str(file.relative_to(source)) for file in reading.with_fields(source)[1]]
