"""Speed, energy, memory and size: prefill and decode tokens a second of one stream, joules a token, peak memory, bytes.

    prefill = prompt tokens / time to the first token
    decode  = (n - 1) / (time to n tokens - time to the first)
    joules_per_token = energy of decoding n tokens / n
    bits_per_weight = 8 * bytes of the tensors, scales among them / parameters

Times are medians over the repeats, after one warm-up; the first token and all of them are timed one after the other,
since machines slow down and speed up. No decode speed is told where the machine's noise was longer than decoding was.
`energy_measured` is 1 only if the CPU's meter was read, see
stages/lib/frame/energy.py. `peak_memory_bytes` is what opening the model and decoding take at their peak.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

from pydantic import Field, PositiveInt

from stages.eval import Beside, OfOne, Scores
from stages.eval.parts import held_out, memory
from stages.lib.frame.energy import meter
from stages.lib.runtimes.base import Runtime, file_bytes
from stages.lib.runtimes.open import open_runtime
from stages.lib.store import models
from stages.lib.store.records import Record
from stages.lib.text import chat


class Speed(OfOne):
    prompt_tokens: PositiveInt = 128
    new_tokens: int = Field(64, ge=2)
    repeats: PositiveInt = 5
    energy_seconds: float = Field(1.0, ge=0)  # of decoding under the meter; 0 leaves energy out

    def evaluate(self, model: Path, records: list[Record], beside: Beside | None = None) -> Scores:
        models.load_tokenizer(model)  # imports transformers, some 450 MB that are not the model's
        before = memory.reset_peak()
        runtime = open_runtime(model)
        parameters, tensor_bytes = runtime.size()
        size = {"parameters": parameters, "bits_per_weight": 8 * tensor_bytes / parameters, "bytes": file_bytes(model)}
        timings = dict(self.score(runtime, records).timings)
        if before is not None:
            timings["peak_memory_bytes"] = memory.peak() - before
        return Scores(size, timings)

    def score(self, runtime: Runtime, records: list[Record]) -> Scores:
        text, tokenizer = "\n".join(held_out.texts(records[:8], "speed")), runtime.tokenizer
        ids = [*chat.start(tokenizer), *chat.text_ids(tokenizer, text)]
        prompt = ids[: self.prompt_tokens]

        def generate(number: int) -> None:
            runtime.generate([prompt], number)

        generate(self.new_tokens)
        pairs = [(seconds(generate, 1), seconds(generate, self.new_tokens)) for _ in range(self.repeats)]
        speeds = {"prefill_tokens_per_second": len(prompt) / median(first for first, _ in pairs)}
        if (decoding := median(whole - first for first, whole in pairs)) > 0:
            speeds["decode_tokens_per_second"] = (self.new_tokens - 1) / decoding
        if self.energy_seconds:
            speeds |= energy(lambda: generate(self.new_tokens), self.new_tokens, self.energy_seconds)
        return Scores(timings=speeds)


def seconds(generate: Callable[[int], None], tokens: int) -> float:
    start = perf_counter()
    generate(tokens)
    return perf_counter() - start


def energy(work: Callable[[], None], tokens: int, least_seconds: float) -> dict[str, float]:
    """Of work that decodes so many tokens, repeated until the time is over."""
    decoded = 0
    with meter() as spent:
        start = perf_counter()
        while perf_counter() - start < least_seconds:
            work()
            decoded += tokens
    return {"joules_per_token": spent["joules"] / decoded, "energy_measured": spent["energy_measured"]}
