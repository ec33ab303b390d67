"""The solutions of a teacher that is a GGUF, in process, chosen as by `solutions` (arXiv:2308.01825).

`model:` is a variant of export. A quantized teacher writes several times faster than its dense original, and fits where
that one doesn't. Cost: `count` x `attempts` replies at most, eight at a time. The same seed gives the same samples.
"""

from pathlib import Path
from typing import Literal

from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Exported
from stages.lib.runtimes.base import Runtime
from stages.lib.text import chat
from stages.traces.parts.answers import Answers, Writer


class LlamaCpp(Answers):
    method: Literal["llama_cpp"]
    model: Exported

    def open(self, model: Path | None, place: Path) -> "RuntimeWriter":
        from stages.lib.runtimes import llama_cpp

        assert model, "the stage gives one to every technique with the parameter `model`"
        file = model / "model.gguf"
        if not file.is_file():
            raise UserError(
                f"{model} has no model.gguf: `model` of a llama_cpp trace is a variant of export with a GGUF"
            )
        return RuntimeWriter(llama_cpp.LlamaCpp(model), self)


class RuntimeWriter(Writer):
    """Every attempt at every batch has a seed of its own."""

    def __init__(self, runtime: Runtime, p: LlamaCpp):
        self.runtime, self.p = runtime, p

    def reply(self, batch: int, prompts: list[str], attempt: int) -> list[str]:
        p, tokenizer = self.p, self.runtime.tokenizer
        ids = [chat.prompt_ids(tokenizer, prompt) for prompt in prompts]
        seed = p.seed + batch * p.attempts + attempt
        replies = self.runtime.generate(ids, p.max_new_tokens, chat.stops(tokenizer), p.temperature, seed)
        return tokenizer.batch_decode(replies, skip_special_tokens=True)
