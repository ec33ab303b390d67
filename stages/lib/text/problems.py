"""Problems with a right answer: what a worked solution looks like, and the score of an answer in [0, 1].

A record says by `scorer` how its answers are scored; without one it is reasoning-gym's own scorer where the record has
an `entry`, else the answer must say the same as the known one, blanks and case aside.

number    the last number is that of the known answer; looked for behind "####", else in \\boxed{}, else everywhere
json      the share of fields that are as in the known answer: texts blanks and case aside, numbers by value, lists in
          order. A field that only one of the two has does not match; what is no JSON object scores 0
pattern   the record's `pattern`, a regular expression, is found in the answer (the syntax of Python's re)

Numbers are written the English way: "1,000", "-3.50", "12 %", "$5", "2e-3". Currencies and per cent are put aside.
"""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from decimal import Context, Decimal
from typing import Any

from stages.lib.frame.errors import UserError
from stages.lib.store.records import Record
from stages.lib.text import duplicates

MARK = "####"  # a solution ends in "#### answer", as in GSM8K (Cobbe et al. 2021, arXiv:2110.14168)
BOXED = re.compile(r"\\boxed\{([^{}]*)\}")  # as in MATH (Hendrycks et al. 2021, arXiv:2103.03874)
NUMBER = re.compile(  # a minus behind a digit subtracts
    r"(?P<minus>(?<!\d)[-−])?(?:[$€£]\s?)?"
    r"(?P<digits>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)(?P<power>[eE][-+]?\d{1,3}(?!\d))?"
)
ALONE = re.compile(NUMBER.pattern + r"\s?[%€£]?\.?")
PATIENCE = 1.0  # seconds for a pattern in one answer: some take longer than anybody waits


def solution(steps: str, answer: str) -> str:
    """A worked solution: lines of working out, perhaps none, and the answer."""
    return f"{steps}{MARK} {answer}"


def steps(solution: str) -> str:
    """The lines of a worked solution before its answer."""
    return solution.rpartition(MARK)[0]


def extract(text: str) -> str | None:
    """The answer that a worked solution ends in; None if it never says."""
    _, mark, answer = text.rpartition(MARK)
    return answer.strip() if mark else None


def score(problem: Record, text: str) -> float:
    """In [0, 1], by the scorer that the record names, reasoning-gym's, or exact match; no answer is 0."""
    if "liked" in problem:
        raise UserError(f"record '{problem['id']}' is a reply that was liked or not; no answer is known to be right")
    match problem.get("scorer"):
        case "number":
            known = number(problem["solution"])
            return float(known is not None and number(text) == known)
        case "json":
            return matching(fields(problem["solution"]), fields(text))
        case "pattern":
            return float(found(problem, text))
    if "entry" not in problem:
        return float(duplicates.plain(text) == duplicates.plain(problem["solution"]))
    answer = extract(text)
    return 0.0 if answer is None else by_reasoning_gym(problem, answer)


def by_reasoning_gym(problem: Record, answer: str) -> float:
    """Its scorer's word. Some fail on what is no answer at all, such as a word for a number: that is wrong, if they can
    read the known answer."""
    from reasoning_gym import get_score_answer_fn

    scorer, entry = get_score_answer_fn(problem["family"]), problem["entry"]
    with suppress(Exception):
        return float(scorer(answer, entry))  # pyright: ignore[reportCallIssue]
    try:
        scorer(entry["answer"], entry)  # pyright: ignore[reportCallIssue]
    except Exception as error:
        said = f"record '{problem['id']}': reasoning-gym's scorer of {problem['family']} fails on its own answer"
        raise UserError(f"{said}: {type(error).__name__}: {error}") from error
    return 0.0


def correct(problem: Record, text: str) -> bool:
    """Full marks only: some scorers give part marks for an answer of the right form."""
    return score(problem, text) > 0.99


def lenient(problem: Record, text: str) -> bool:
    """Whether it is right as it stands, or its last line or word is the answer as if the mark stood before it."""
    lines = text.strip().splitlines()
    last: Sequence[str] = (lines[-1], lines[-1].split()[-1].rstrip(".")) if lines else ()
    return correct(problem, text) or any(correct(problem, said) for each in last for said in (each, solution("", each)))


def vote(problem: Record, text: str) -> str | None:
    """What a text answers, written alike where the scorer makes no difference; None if it never says."""
    match problem.get("scorer"):
        case "number":
            value = number(text)
            return None if value is None else plain_number(value)
        case "json":
            answer = fields(text)
            return None if answer is None else json.dumps(answer, sort_keys=True)
    return extract(text)


def final(text: str) -> str:
    """The part of a text that gives its answer: behind the last mark, else in the last box, else all of it."""
    if (marked := extract(text)) is not None:
        return marked
    boxes = BOXED.findall(text)
    return boxes[-1] if boxes else text


def number(text: str) -> Decimal | None:
    """The last number of an answer."""
    every = list(NUMBER.finditer(final(text)))
    if not every:
        return None
    minus, digits, power = every[-1].group("minus", "digits", "power")
    return Decimal(("-" if minus else "") + digits.replace(",", "") + (power or ""))


def is_number(text: str) -> bool:
    """Whether an answer is a number and nothing else; it may be worked out before its mark or around its box."""
    return bool(ALONE.fullmatch(final(text).strip()))


def plain_number(value: Decimal) -> str:
    """The same for equal numbers."""
    return str(value.normalize(Context(prec=max(1, len(value.as_tuple().digits))))) if value else "0"


def fields(text: str) -> dict[str, str] | None:
    """The fields of a JSON object, each written alike where it is equal; None of anything else."""
    try:
        found = json.loads(text, parse_float=Decimal, parse_int=Decimal, parse_constant=refuse)
        return {name: alike(value) for name, value in found.items()} if isinstance(found, dict) else None
    except (ValueError, ArithmeticError, RecursionError):  # a model may write 1e99999999999, or brackets for ever
        return None


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def alike(value: Any) -> str:
    match value:
        case str():
            return json.dumps(duplicates.plain(value))
        case Decimal():
            return plain_number(value)
        case list():
            return f"[{', '.join(map(alike, value))}]"
        case dict():
            return f"{{{', '.join(f'{json.dumps(name)}: {alike(value[name])}' for name in sorted(value))}}}"
        case _:
            return json.dumps(value)


def matching(known: dict[str, str] | None, said: dict[str, str] | None) -> float:
    """The share of all fields that both have alike."""
    if known is None or said is None:
        return 0.0
    every = {**known, **said}
    return sum(known.get(name) == said.get(name) for name in every) / len(every) if every else 1.0


def found(problem: Record, text: str) -> bool:
    """Whether the record's pattern is found; where the search takes too long it counts as not, which is said."""
    import regex

    try:
        return regex.search(problem["pattern"], text, timeout=PATIENCE) is not None
    except TimeoutError:
        print(f"record '{problem['id']}': its pattern {problem['pattern']!r} took over {PATIENCE} s; counted as wrong")
        return False


def check_pattern(pattern: object, place: str) -> str:
    """The regular expression; what is none is refused."""
    import regex

    if not isinstance(pattern, str):
        raise UserError(f"{place}: pattern {pattern!r:.80} is no text")
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise UserError(f"{place}: pattern {pattern!r:.80} is no regular expression: {error}") from None
    return pattern
