"""Speed and energy of one stream: prefill and decode tokens a second, joules a token.

    prefill = prompt tokens / time to the first token
    decode  = (n - 1) / (time to n tokens - time to the first)
    joules_per_token = energy of decoding n tokens / n

Times are medians over the repeats, after one warm-up. Energy is stages/lib/frame/energy.py's; `energy_measured` is 1 only if
the CPU's meter was read.
"""

from collections.abc import Callable
from statistics import median
from time import perf_counter

from pydantic import Field, PositiveInt

from stages.eval.parts import held_out
from stages.lib.frame import params
from stages.lib.frame.energy import meter
from stages.lib.runtimes.base import Runtime

REPEATABLE = False
NEVER = 2**31 - 1  # no token's number: every model decodes to the end


class Params(params.Params):
    prompt_tokens: PositiveInt = 128
    new_tokens: int = Field(64, ge=2)
    repeats: PositiveInt = 5
    energy_seconds: float = Field(1.0, ge=0)  # of decoding under the meter; 0 leaves energy out


def score(runtime: Runtime, data: held_out.HeldOut, p: Params) -> dict[str, float]:
    text, tokenizer = "\n".join(row["text"] for row in data.documents[:8]), runtime.tokenizer
    ids = [held_out.start(tokenizer), *tokenizer.encode(text, add_special_tokens=False)]
    prompt = ids[: p.prompt_tokens]

    def generate(number: int) -> None:
        runtime.generate([prompt], number, stop=NEVER)

    generate(p.new_tokens)
    first = seconds(lambda: generate(1), p.repeats)
    whole = seconds(lambda: generate(p.new_tokens), p.repeats)
    speeds = {
        "prefill_tokens_per_second": len(prompt) / first,
        "decode_tokens_per_second": (p.new_tokens - 1) / max(whole - first, 1e-9),
    }
    return speeds | (energy(lambda: generate(p.new_tokens), p) if p.energy_seconds else {})


def seconds(work: Callable[[], None], repeats: int) -> float:
    def once() -> float:
        start = perf_counter()
        work()
        return perf_counter() - start

    return median(once() for _ in range(repeats))


def energy(work: Callable[[], None], p: Params) -> dict[str, float]:
    tokens = 0
    with meter() as spent:
        start = perf_counter()
        while perf_counter() - start < p.energy_seconds:
            work()
            tokens += p.new_tokens
    return {"joules_per_token": spent["joules"] / tokens, "energy_measured": spent["energy_measured"]}
