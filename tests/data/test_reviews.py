"""What benchmarks/reviews.py writes: no held-out sentence is anywhere else, and no file tells what is unlabelled."""

import json
from pathlib import Path

import pytest

from benchmarks import reviews

PACKAGE = Path(__file__).parents[2] / "models" / "vaderSentiment-3.3.2.tar.gz"


@pytest.mark.skipif(not PACKAGE.is_file(), reason="make models/reviews has not been run")
def test_the_files_keep_apart_what_must_not_meet(tmp_path):
    reviews.main(PACKAGE, tmp_path / "reviews")

    def read(name):
        return [json.loads(line) for line in (tmp_path / "reviews" / name).read_text().splitlines()]

    train, held_out, products = (
        read(f"{name}.jsonl") for name in ("labelled/train", "labelled/held_out", "products/held_out")
    )
    unlabelled = read("unlabelled/movies.jsonl")
    assert (len(train), len(held_out), len(unlabelled), len(products)) == (1000, 2000, 8566, 3600)
    texts = [{row["text"] for row in rows} for rows in (train, held_out, unlabelled, products)]
    assert texts[0] <= texts[2] and not texts[1] & (texts[0] | texts[2] | texts[3])
    assert all(row.keys() == {"text"} for row in unlabelled)
    assert all((row["rating"] > 0) == (row["label"] == "positive") for row in train + held_out + products)


def test_another_package_is_refused(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(b"x")
    with pytest.raises(SystemExit, match="has sha256 .*, not 5d7c06"):
        reviews.main(tmp_path / "x.tar.gz", tmp_path / "reviews")
    assert not (tmp_path / "reviews").exists()
