"""The solutions of a teacher that is a GGUF, in process, chosen as by `solutions` (arXiv:2308.01825).

`model:` is a variant of export. A quantized teacher writes several times faster than its dense original, and fits where
that one doesn't. Cost: `count` x `attempts` replies at most, eight at a time. The same seed gives the same samples.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from stages.lib.frame.errors import UserError
from stages.lib.runtimes.base import Runtime
from stages.lib.runtimes.open import open_runtime
from stages.lib.store.records import Record
from stages.lib.text import problems as tasks
from stages.traces.parts import answers


class Params(answers.Sampling):
    method: Literal["llama_cpp"]


def open_teacher(model: Path, _place: Path, _p: Params) -> Runtime:
    if not (model / "model.gguf").is_file():
        raise UserError(f"{model} has no model.gguf: `model` of a llama_cpp trace is a variant of export with a GGUF")
    return open_runtime(model)


def record(teacher: Any, tokenizer: Any, problems: list[Record], _rows: Any, p: Params) -> Iterator[Record]:
    for number, asked in enumerate(answers.drawn(problems, p)):

        def ask(prompts: list[str], attempt: int, number: int = number) -> list[str]:
            ids = [tasks.prompt_ids(tokenizer, prompt) for prompt in prompts]
            seed = p.seed + number * p.attempts + attempt
            out = teacher.generate(ids, p.max_new_tokens, tokenizer.eos_token_id, p.temperature, seed)
            return tokenizer.batch_decode(out, skip_special_tokens=True)

        yield from answers.kept(asked, ask, p)
