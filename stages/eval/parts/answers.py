"""What a model answers to held-out problems, for whoever scores it."""

from collections import defaultdict

from stages.lib.frame.errors import UserError
from stages.lib.runtimes.base import Runtime
from stages.lib.store.records import Record
from stages.lib.text import chat


def first_of_each_family(problems: list[Record], number: int, measure: str) -> list[Record]:
    """At most `number` problems of every family, the families in the order of their names."""
    families: dict[str, list[Record]] = defaultdict(list)
    for problem in problems:
        if "family" not in problem or "solution" not in problem or "liked" in problem:
            raise UserError(f"eval.{measure}.records: record '{problem['id']}' is no problem with an answer")
        families[problem["family"]].append(problem)
    return [problem for name in sorted(families) for problem in families[name][:number]]


def greedy(runtime: Runtime, problems: list[Record], max_new_tokens: int) -> list[str]:
    """The likeliest answers, through the chat template, without special tokens."""
    tokenizer = runtime.tokenizer
    prompts = [chat.prompt_ids(tokenizer, problem["prompt"]) for problem in problems]
    answers = runtime.generate(prompts, max_new_tokens, chat.stops(tokenizer))
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
