"""Problems with a right answer: what a worked solution looks like, and the score of an answer by reasoning-gym's own
scorer. What has no scorer, such as a question of one's own, is right where it says the same as the known reply."""

from stages.lib.store.records import Record
from stages.lib.text import duplicates

MARK = "####"  # a solution ends in "#### answer", as in GSM8K (Cobbe et al. 2021, arXiv:2110.14168)


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
    """reasoning-gym's score of a worked solution, in [0, 1]; no answer is 0. Without a scorer exact match, blanks and
    case aside."""
    if "entry" not in problem:
        return float(duplicates.plain(text) == duplicates.plain(problem["solution"]))
    from reasoning_gym import get_score_answer_fn

    answer = extract(text)
    return 0.0 if answer is None else float(get_score_answer_fn(problem["family"])(answer, problem["entry"]))  # pyright: ignore[reportCallIssue]


def correct(problem: Record, text: str) -> bool:
    """Full marks only: some scorers give part marks for an answer of the right form."""
    return score(problem, text) > 0.99
