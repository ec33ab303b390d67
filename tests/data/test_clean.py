"""Cleaning and splitting, against brute force, datasketch's index and by hand."""

import random
from itertools import combinations
from pathlib import Path

import pytest
from datasketch import MinHash, MinHashLSH

from stages.data.parts import clean
from stages.lib.text import chat, duplicates


def document(text: str) -> dict:
    return {"id": text[:9], "source": "s", "text": text}


def plainly(rows: list[dict]) -> list[dict]:
    """All in memory: the first of each set of copies at the place of the last, then what datasketch's index lets in."""
    taught = [tuple(duplicates.plain(chat.plain(row.get(name, ""))) for name in clean.LEARNT) for row in rows]
    first = {key: row for key, row in zip(reversed(taught), reversed(rows), strict=True)}
    unique = [first[key] for i, key in enumerate(taught) if key not in taught[i + 1 :]]
    index, kept = MinHashLSH(threshold=duplicates.SIMILAR, num_perm=128), []
    for number, row in enumerate(unique):
        sketch = MinHash(num_perm=128, seed=1)
        sketch.update_batch(duplicates.shingles(row.get("text", "")))
        if "text" not in row or not index.query(sketch):
            index.insert(str(number), sketch)
            kept.append(row)
    return kept


def stay(rows: list[dict], place: Path, workers: int = 1) -> list[clean.Candidate]:
    copies = duplicates.Copies(place / "copies.db")
    files = list(clean.shards(rows, place, least=0, held_out=0.3, seed=0, workers=workers))
    for file in files:
        copies.count(row.same for row in clean.load(file)[1])
    return list(clean.distinct(files, copies, duplicates.Seen(file=place / "seen.db")))


@pytest.fixture
def mixture(texts, monkeypatch):
    """Chapters, some again with other blanks, some with a few words changed, one way or the other round; and chats."""
    monkeypatch.setattr(clean, "SHARD", 5000)  # bytes: many shards
    draw = random.Random(0)
    near = [text.replace(" the ", " a ", count) for text in texts for count in (1, 2, 9, 30)]
    again = [text.upper().replace(" ", "  ") for text in texts[:20]]
    asked = [{"id": f"{n}", "family": "f", "prompt": f"Say {n % 30}", "solution": f"It is {n % 45}"} for n in range(99)]
    rows = [*map(document, [*texts, *near, *again]), *asked]
    draw.shuffle(rows)
    return rows


def test_what_stays_is_what_stays_in_memory(mixture, tmp_path):
    kept, expected = stay(mixture, tmp_path), list(map(clean.normalise, plainly(mixture)))
    assert 60 < len(expected) < len(mixture) - 60 and len(list(tmp_path.glob("*.txt"))) > 20
    assert [row.line for row in kept] == [clean.records.line(row) for row in expected]
    for row, source in zip(kept, expected, strict=True):
        assert (row.split, row.weight) == (clean.split(source, 0.3, 0), clean.weight(source))
        assert (row.family, row.kind) == (source.get("family"), source.get("family") or source["source"])


def test_more_processes_change_nothing(mixture, tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    one, two = (stay(mixture, folder, workers) for folder, workers in zip(folders, (1, 2), strict=True))
    assert one == two


def test_what_is_there_is_not_cleaned_again(mixture, tmp_path):
    before = stay(mixture, tmp_path)
    (tmp_path / "000003.txt").unlink()
    first = tmp_path / "000000.txt"
    in_first = {row.line for row in clean.load(first)[1]}
    first.write_text(first.read_text().replace("the", "THE"))
    after = stay(mixture, tmp_path)
    expected = [row.line.replace("the", "THE") if row.line in in_first else row.line for row in before]
    assert [row.line for row in after] == expected != [row.line for row in before]


def test_the_bands_are_those_that_datasketch_takes():
    index = MinHashLSH(threshold=duplicates.SIMILAR, num_perm=duplicates.SKETCH)
    assert (index.b, index.r) == (duplicates.BANDS, duplicates.ROWS)


def test_exact_duplicates_differ_in_case_and_blanks_only():
    rows = [document("One  day\nit rained"), document("one day it rained"), document("one day it snowed")]
    assert clean.same(rows[0]) == clean.same(rows[1]) != clean.same(rows[2])


def test_of_copies_the_first_stays_where_the_last_stands():
    copies = duplicates.Copies()
    said = [(1, "a"), (2, "b"), (1, "c"), (3, "d"), (1, "e"), (2, "f")]
    copies.count(key for key, _ in said)
    assert [copies.last(*each) for each in said] == [None, None, None, "d", "a", "b"]


def test_near_duplicates_are_what_exact_jaccard_says(texts):
    """Each chapter, and a copy with a few words changed: MinHash drops the copies and nothing else."""
    chapters = [text for text in texts if len(text) > 1000][:12]
    copies = [text.replace(" the ", " a ", 2) for text in chapters[:5]]
    seen = duplicates.Seen()
    kept = [text for text in chapters + copies if seen.add(text)]
    assert kept == chapters
    for a, b in combinations(map(set, map(duplicates.shingles, kept)), 2):
        assert len(a & b) / len(a | b) < duplicates.SIMILAR


def test_split_changes_with_the_seed_alone(texts):
    sides = [[clean.split(document(text), 0.4, seed) for text in texts] for seed in (0, 0, 1)]
    assert sides[0] == sides[1] != sides[2]


def test_held_out_is_the_share_that_was_asked_for():
    """Of 4,000 records; a share and its complement would differ by 22 standard deviations or more."""
    for share in (0.1, 0.3, 0.8):
        held_out = [clean.split(document(f"record {n}"), share, seed=0) for n in range(4000)].count("held_out")
        assert abs(held_out - 4000 * share) < 4 * (4000 * share * (1 - share)) ** 0.5


def test_records_that_bring_their_split_keep_it(tmp_path):
    rows = [document(f"record {n}") | {"split": ("train", "held_out")[n % 2]} for n in range(50)]
    kept = stay(rows, tmp_path)
    assert [row.split for row in kept] == ["train", "held_out"] * 25
    assert not any('"split"' in row.line for row in kept)


def test_half_a_surrogate_pair_is_no_obstacle(tmp_path):
    [row] = stay([document("some words, a \ud83d b")], tmp_path)
    assert "a \ufffd b" in row.line


def test_normalise_by_hand():
    assert clean.normalise(document("cafe\u0301 \r\n\n\n\nend  "))["text"] == "caf\u00e9\n\nend"
