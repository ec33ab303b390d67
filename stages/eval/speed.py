"""Speed and energy of one stream: prefill and decode tokens a second, joules a token.

    prefill = prompt tokens / time to the first token
    decode  = (n - 1) / (time to n tokens - time to the first)
    joules_per_token = energy of decoding n tokens / n

Times are medians over the repeats, after one warm-up. Energy is codecarbon's (Courty et al., zenodo.11171501): CPU and
GPU by RAPL and NVML where the machine lets them be read, else an estimate from this process's share of the CPU; memory
always by a constant per module. `energy_measured` is 1 only if the CPU's meter was read.
"""

import logging
from collections.abc import Callable
from statistics import median
from time import perf_counter

from pydantic import Field, PositiveInt

from stages.eval import _held_out
from stages.lib import params
from stages.lib.runtimes import Runtime

REPEATABLE = False
NEVER = 2**31 - 1  # no token's number: every model decodes to the end


class Params(params.Params):
    prompt_tokens: PositiveInt = 128
    new_tokens: int = Field(64, ge=2)
    repeats: PositiveInt = 5
    energy_seconds: float = Field(1.0, ge=0)  # of decoding under the meter; 0 leaves energy out
    country: str = Field("DEU", pattern="^[A-Z]{3}$")  # codecarbon wants one; joules do not depend on it


def score(runtime: Runtime, data: _held_out.HeldOut, p: Params) -> dict[str, float]:
    text, tokenizer = "\n".join(row["text"] for row in data.documents[:8]), runtime.tokenizer
    ids = [_held_out.start(tokenizer), *tokenizer.encode(text, add_special_tokens=False)]
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
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.core.cpu import is_rapl_available

    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    tracker = OfflineEmissionsTracker(
        country_iso_code=p.country, tracking_mode="process", output_methods=[], allow_multiple_runs=True, log_level=50
    )
    tracker.start_task("decode")
    tokens, start = 0, perf_counter()
    while perf_counter() - start < p.energy_seconds:
        work()
        tokens += p.new_tokens
    used = tracker.stop_task("decode")
    tracker.stop()
    joules = used.energy_consumed * 3.6e6  # from kWh
    return {"joules_per_token": joules / tokens, "energy_measured": float(is_rapl_available())}
