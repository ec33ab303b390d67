"""The models that can be asked for, of which one is in memory."""

from apps.parts import catalog
from apps.parts.llama import Llama
from stages.lib.frame.errors import UserError


class Models:
    def __init__(self, names: list[str]):
        """The first answers where a request names none; no others are ever opened."""
        self.names = list(dict.fromkeys(names))
        self.name = ""  # of the one in memory
        self.llama: Llama | None = None

    def load(self, name: str) -> Llama:
        """The model of that name, in place of the one before, for which there may be no memory beside it."""
        if self.llama is None or self.name != name:
            place = catalog.find(name)
            if not place.is_file():
                raise UserError(f"{place} is no GGUF file, and only those are served: python -m apps.chat opens it")
            self.llama = None
            self.name, self.llama = name, Llama(place)
        return self.llama
