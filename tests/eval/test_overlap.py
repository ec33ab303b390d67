"""rouge_l and chrf are the papers', by hand; the libraries come with the extra `harness`."""

from collections import Counter

import pytest

from stages.eval.parts import overlap

KNOWN, SAID = "Die Katze saß auf der großen Matte", "Die KATZE, auf der Matte."


def test_short_replies_have_neither():
    assert overlap.scores(["four apples"], ["four pears"]) == {}


def test_rouge_l_is_of_the_longest_common_words():
    pytest.importorskip("rouge_score")
    precision, recall = 5 / 5, 5 / 7  # Die Katze auf der Matte
    expected = 2 * precision * recall / (precision + recall)
    assert overlap.scores([KNOWN, KNOWN], [SAID, "?"])["rouge_l"] == pytest.approx(expected / 2)
    assert overlap.scores([KNOWN], [KNOWN]) == pytest.approx({"rouge_l": 1, "chrf": 1})


def test_chrf_is_of_runs_of_characters():
    pytest.importorskip("sacrebleu")

    def runs(text, length):
        letters = "".join(text.split())
        return Counter(letters[i : i + length] for i in range(len(letters) - length + 1))

    both = [(runs(KNOWN, length), runs(SAID, length)) for length in range(1, 7)]
    precision = sum((known & said).total() / said.total() for known, said in both) / 6
    recall = sum((known & said).total() / known.total() for known, said in both) / 6
    expected = 5 * precision * recall / (4 * precision + recall)
    assert overlap.scores([KNOWN], [SAID])["chrf"] == pytest.approx(expected)
