"""The teacher's own right solutions: rejection sampling. Yuan et al. 2023, arXiv:2308.01825, section 3.3.

Each problem is tried up to `attempts` times; the first solution that the task's scorer gives full marks is kept.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt

from stages.lib import problems as tasks
from stages.lib.records import Record
from stages.traces import Recording


class Params(Recording):
    method: Literal["solutions"]
    count: PositiveInt  # problems asked
    attempts: PositiveInt = 2
    temperature: NonNegativeFloat = 0.7  # 0: the likeliest token, so that one attempt is enough
    max_new_tokens: PositiveInt = 64
    batch_size: PositiveInt = 64


def record(teacher: Any, tokenizer: Any, problems: list[Record], _rows: Any, p: Params) -> Iterator[Record]:
    torch.manual_seed(p.seed)
    order = torch.randperm(len(problems), generator=torch.Generator().manual_seed(p.seed)).tolist()
    for left in torch.tensor(order[: p.count]).split(p.batch_size):
        asked = sorted((problems[i] for i in left.tolist()), key=lambda row: len(row["prompt"]))
        for attempt in range(p.attempts):
            replies = generate(teacher, tokenizer, [row["prompt"] for row in asked], p)
            marks = [tasks.correct(row, reply) for row, reply in zip(asked, replies, strict=True)]
            for row, reply, right in zip(asked, replies, marks, strict=True):
                if right:
                    yield row | {"solution": reply, "attempt": attempt}
            asked = [row for row, right in zip(asked, marks, strict=True) if not right]
            if not asked:
                break


@torch.no_grad()
def generate(teacher: Any, tokenizer: Any, prompts: list[str], p: Params) -> list[str]:
    """One reply to each prompt, padded on the left so that all are written at once."""
    ids = [tasks.prompt_ids(tokenizer, prompt) for prompt in prompts]
    batch = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt").to(teacher.device)
    sampling = {"do_sample": True, "temperature": p.temperature, "top_k": 0} if p.temperature else {"do_sample": False}
    out = teacher.generate(**batch, max_new_tokens=p.max_new_tokens, pad_token_id=tokenizer.pad_token_id, **sampling)
    return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
