"""Sentences of reviews that twenty people each have rated, as files for profile `specialist`.

python -m benchmarks.reviews models/vaderSentiment-3.3.2.tar.gz models/reviews

From the source package of vaderSentiment 3.3.2 (MIT; Hutto & Gilbert 2014, ICWSM): 10,605 sentences of film reviews
and 3,708 of product reviews with the mean of twenty ratings from -4 to 4. A sentence is positive or negative by its
sign; the 135 with a mean of exactly 0 are left out. By a hash of the text 2,000 film sentences are held out, and 1,000
have their labels in `labelled`; `unlabelled` holds all 8,566 that are not held out, and nothing but their texts.
Products are only asked about.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import cyclopts

from stages.lib.frame import files

SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
FILE = "hutto_ICWSM_2014/{}Snippets_GroundTruth.txt"
HELD_OUT, LABELLED = 2000, 1000
Row = dict[str, str | float]


def main(package: Path, folder: Path) -> None:
    if (found := files.digest(package)) != SHA256:
        raise SystemExit(f"{package} has sha256 {found}, not {SHA256}")
    with tarfile.open(package) as outer:
        inner = outer.extractfile(INNER)
        assert inner
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as archive:
            movies, products = (sorted(read(archive, name), key=place) for name in ("movieReview", "amazonReview"))
    held_out, rest = movies[:HELD_OUT], movies[HELD_OUT:]
    with files.writing(folder) as out:
        write(out / "labelled" / "train.jsonl", [row | {"split": "train"} for row in rest[:LABELLED]])
        write(out / "labelled" / "held_out.jsonl", [row | {"split": "held_out"} for row in held_out])
        write(out / "unlabelled" / "movies.jsonl", [{"text": row["text"]} for row in rest])
        write(out / "products" / "held_out.jsonl", products)
    print(f"{folder}: {LABELLED} of {len(rest)} labelled, {len(held_out)} held out, {len(products)} of products")


def read(archive: tarfile.TarFile, name: str) -> Iterator[Row]:
    """Each sentence once, with its label and its mean rating."""
    lines = archive.extractfile(FILE.format(name))
    assert lines
    seen = set()
    for line in lines.read().decode("latin1").splitlines():
        number, rating, text = line.split("\t")
        if float(rating) and text not in seen:
            seen.add(text)
            label = "positive" if float(rating) > 0 else "negative"
            yield {"id": number, "text": text, "label": label, "rating": float(rating)}


def place(row: Row) -> bytes:
    return hashlib.sha256(str(row["text"]).encode()).digest()


def write(file: Path, rows: list[Row]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    cyclopts.run(main)
