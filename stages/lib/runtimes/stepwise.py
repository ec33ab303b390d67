"""Text from a runtime that takes new tokens and what it remembers of earlier ones: one sequence at a time.

Shapes: T = new tokens, V = vocabulary.
"""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from stages.lib.runtimes.base import Ids, choose


class Stepwise:
    """A runtime whose heir defines `step` and `empty`."""

    empty: Any  # the memory before the first token

    def step(self, ids: Ids, memory: Any) -> tuple[np.ndarray, Any]:
        """Logits after each new token, (T, V) float32, and the memory that holds them too."""
        raise NotImplementedError

    def logits(self, ids: Ids) -> np.ndarray:
        return self.step(ids, self.empty)[0]

    def generate(
        self,
        prompts: list[Ids],
        max_new_tokens: int,
        stops: Collection[int] = (),
        temperature: float = 0,
        seed: int = 0,
    ) -> list[Ids]:
        random = np.random.default_rng(seed)

        def pick(logits_TV: np.ndarray) -> int:
            return choose(logits_TV[-1:], temperature, random)[0]

        return [self.answer(prompt, max_new_tokens, stops, pick) for prompt in prompts]

    def answer(
        self, prompt: Ids, max_new_tokens: int, stops: Collection[int], pick: Callable[[np.ndarray], int]
    ) -> Ids:
        answer: Ids = []
        new, memory = prompt, self.empty
        while len(answer) < max_new_tokens:
            logits_TV, memory = self.step(new, memory)
            if (token := pick(logits_TV)) in stops:
                break
            answer.append(token)
            new = [token]
        return answer
