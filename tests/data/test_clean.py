"""Cleaning and splitting, against brute force and by hand."""

from itertools import combinations

from stages.data.parts import clean
from stages.lib.text import duplicates


def document(text: str) -> dict:
    return {"id": text[:9], "source": "s", "text": text}


def test_exact_duplicates_differ_in_case_and_blanks_only():
    rows = [document("One  day\nit rained"), document("one day it rained"), document("one day it snowed")]
    assert [row["text"] for row in clean.without_duplicates(rows)] == ["One  day\nit rained", "one day it snowed"]


def test_near_duplicates_are_what_exact_jaccard_says(texts):
    """Each chapter, and a copy with a few words changed: MinHash drops the copies and nothing else."""
    chapters = [text for text in texts if len(text) > 1000][:12]
    copies = [text.replace(" the ", " a ", 2) for text in chapters[:5]]
    rows = [document(text) for text in chapters + copies]
    kept = [row["text"] for row in clean.without_near_duplicates(rows)]
    assert kept == chapters
    for a, b in combinations(map(set, map(duplicates.shingles, kept)), 2):
        assert len(a & b) / len(a | b) < duplicates.SIMILAR


def test_split_does_not_depend_on_order_and_changes_with_the_seed(texts):
    rows = [document(text) for text in texts]
    train, held_out = clean.split(rows, 0.4, seed=0)
    assert clean.split(rows[::-1], 0.4, seed=0)[1][::-1] == held_out
    assert clean.split(rows, 0.4, seed=1)[1] != held_out
    assert len(train) + len(held_out) == len(rows)


def test_held_out_is_the_share_that_was_asked_for():
    """Of 4,000 records; a share and its complement would differ by 22 standard deviations or more."""
    rows = [document(f"record {n}") for n in range(4000)]
    for share in (0.1, 0.3, 0.8):
        _, held_out = clean.split(rows, share, seed=0)
        assert abs(len(held_out) - 4000 * share) < 4 * (4000 * share * (1 - share)) ** 0.5


def test_records_that_bring_their_split_keep_it():
    rows = [document(f"record {n}") | {"split": ("train", "held_out")[n % 2]} for n in range(50)]
    train, held_out = clean.split(rows, 0.05, seed=0)
    assert [row["text"] for row in held_out] == [row["text"] for row in rows[1::2]]
    assert "split" not in train[0]


def test_normalise_by_hand():
    assert clean.normalise(document("cafe\u0301 \r\n\n\n\nend  "))["text"] == "caf\u00e9\n\nend"
