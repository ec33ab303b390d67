"""How much of a known reply an answer says in its own words: what free texts are measured by, beside being the same.

rouge_l    mean F1 of the longest common subsequence of words. Lin 2004, W04-1013, section 3
chrf       F2 of runs of 1 to 6 characters, over all answers. Popovic 2015, doi:10.18653/v1/W15-3049

Both in [0, 1]. They come with the extra `harness`; without it they are left out.
"""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from statistics import mean

SHORT = 5  # words of a reply that is right or wrong and nothing between


class Words:
    """rouge_score's own tokenizer knows no letters but a to z."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.casefold())


def scores(known: Sequence[str], said: Sequence[str]) -> dict[str, float]:
    """rouge_l and chrf; neither where replies are short."""
    if mean(len(text.split()) for text in known) <= SHORT or not (find_spec("rouge_score") and find_spec("sacrebleu")):
        return {}
    from rouge_score.rouge_scorer import RougeScorer  # pyright: ignore[reportMissingImports]
    from sacrebleu.metrics.chrf import CHRF  # pyright: ignore[reportMissingImports]

    rouge = RougeScorer(["rougeL"], tokenizer=Words())
    pairs = zip(known, said, strict=True)
    return {
        "rouge_l": mean(rouge.score(reply, answer)["rougeL"].fmeasure for reply, answer in pairs),
        "chrf": CHRF().corpus_score(said, [known]).score / 100,
    }
