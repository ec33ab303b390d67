"""The teacher's own solutions: rejection sampling. Yuan et al. 2023, arXiv:2308.01825, section 3.3.

Or by majority, or unverified: see stages/traces/parts/answers.py. Cost: `count` x `attempts` replies at most.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch

from stages.lib.store.records import Record
from stages.lib.text import problems as tasks
from stages.traces.parts import answers


class Params(answers.Sampling):
    method: Literal["solutions"]


def record(teacher: Any, tokenizer: Any, problems: list[Record], _rows: Any, p: Params) -> Iterator[Record]:
    torch.manual_seed(p.seed)
    for asked in answers.drawn(problems, p):
        yield from answers.kept(asked, lambda prompts, _: generate(teacher, tokenizer, prompts, p), p)


@torch.no_grad()
def generate(teacher: Any, tokenizer: Any, prompts: list[str], p: Params) -> list[str]:
    """One reply to each prompt, padded on the left so that all are written at once."""
    ids = [tasks.prompt_ids(tokenizer, prompt) for prompt in prompts]
    batch = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt").to(teacher.device)
    sampling = {"do_sample": True, "temperature": p.temperature, "top_k": 0} if p.temperature else {"do_sample": False}
    out = teacher.generate(**batch, max_new_tokens=p.max_new_tokens, pad_token_id=tokenizer.pad_token_id, **sampling)
    return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
