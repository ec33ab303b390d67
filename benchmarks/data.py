"""Cleaning and tokenizing 0.1, 0.4 and 1.6 GB of text: memory, speed, and which duplicates are found.

python3.11 -m venv /tmp/datatrove && /tmp/datatrove/bin/pip install "datatrove[processing]" orjson spacy
python -m benchmarks.data [--datatrove /tmp/datatrove/bin/python]

The texts are made of the sentences of the books in stages/data/corpus, drawn by a seed, about 2 kB each; one in twenty
comes again as it is, one in twenty with a few words changed, one in twenty with so many that it is another text. What
is near is told by the exact Jaccard similarity of all runs of five words. A pair counts as dropped where one of the two
is missing afterwards. Memory is the sum over all processes of a stage (pages that they share count more than once);
MB/s per core is the source by the processor time of all of them, from start to end. The peer does the same steps
(reading, MinHash deduplication, writing) with one core.
"""

import json
import lzma
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import psutil
from ruamel.yaml import YAML

from benchmarks import _result
from stages.lib.frame import files
from stages.lib.frame.errors import UserError, command
from stages.lib.store import records
from stages.lib.text.duplicates import SIMILAR

RESULT = Path("benchmarks/results/data.json")
BOOKS = Path("stages/data/corpus")
PART = 50_000_000  # bytes of a file
SMALL = 100  # MB of which speed and duplicates are measured
SENTENCES = 15  # of a text
PLANTED = 0.05  # of each kind
SETTINGS = {
    "data": {
        "corpus": {"method": "documents", "source": "texts", "licence": "made up"},
        "sums": {"method": "documents", "source": "texts", "licence": "made up"},
    },
    "tokenize": {
        "bpe": {
            "method": "bpe",
            "documents": "data/corpus",
            "problems": "data/sums",
            "vocab_size": 4096,
            "problem_share": 0.01,
            "train_tokens": 10**9,
        }
    },
}


def main(
    folder: Path | None = None, *, sizes: tuple[int, ...] = (SMALL, 400, 1600), datatrove: Path | None = None
) -> None:
    """`sizes` are MB of text; `folder` keeps what is made. Results of other sizes stay as they are."""
    result = files.read_json(RESULT) if RESULT.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        for size in sizes:
            place = (folder or Path(temporary)) / str(size)
            if not (place / "settings.yaml").exists():
                make(place, size * 10**6)
            result |= measure(place, size)
            if size == SMALL:
                result |= found(place / "texts", place / "out/data/records")
                seconds = processor_seconds(["stages.data", "corpus", "--workers", "1", *options("one")], place)
                result["mb_per_s_core"] = round(size / seconds, 2)
                if datatrove:
                    script = Path(__file__).with_name("_datatrove.py")
                    seconds = processor_seconds([str(script), "texts", "peer"], place, datatrove.absolute())
                    result["datatrove_mb_per_s_core"] = round(size / seconds, 2)
                    result["ratio_datatrove"] = round(result["mb_per_s_core"] / result["datatrove_mb_per_s_core"], 2)
                    peer = found(place / "texts", place / "peer/kept")
                    result |= {f"datatrove_{name}": value for name, value in peer.items()}
            _result.save(RESULT, result, "datasketch", "tokenizers")
            print(RESULT.read_text(), flush=True)


def measure(place: Path, size: int) -> dict[str, float]:
    """Peak memory and minutes of both stages, with as many processes as there are processors."""
    data_mb, data_minutes = watched(["stages.data", "corpus", *options("data")], place)
    given = ["--documents", "out/data/records", "--problems", "sums"]
    tokens_mb, tokens_minutes = watched(["stages.tokenize", "bpe", *given, *options("tokenize")], place)
    return {
        f"peak_mb_{size}": data_mb,
        f"minutes_{size}": data_minutes,
        f"tokenize_peak_mb_{size}": tokens_mb,
        f"tokenize_minutes_{size}": tokens_minutes,
    }


def options(out: str) -> list[str]:
    given = {"code": "code.json", "checkpoints": "kept", "out": f"out/{out}", "params-file": "settings.yaml"}
    return [word for name, value in given.items() for word in (f"--{name}", value)]


def start(words: list[str], place: Path, python: Path | str = sys.executable) -> subprocess.Popen[bytes]:
    module = ["-m"] if words[0].startswith("stages.") else []
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    return subprocess.Popen([python, *module, *words], cwd=place, env=environment)


def watched(words: list[str], place: Path) -> tuple[float, float]:
    """(peak MB of all processes together, minutes)."""
    begin, peak, process = time.monotonic(), 0, start(words, place)
    while process.poll() is None:
        peak = max(peak, memory(psutil.Process(process.pid)))
        time.sleep(0.1)
    require_success(process, words)
    return round(peak / 1e6), round((time.monotonic() - begin) / 60, 1)


def memory(stage: psutil.Process) -> int:
    """Bytes of a process and all that it has started."""
    total = 0
    for process in (stage, *stage.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            total += process.memory_info().rss
    return total


def processor_seconds(words: list[str], place: Path, python: Path | str = sys.executable) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = start(words, place, python)
    process.wait()
    require_success(process, words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def require_success(process: subprocess.Popen[bytes], words: list[str]) -> None:
    if process.returncode:
        raise UserError(f"{' '.join(words)} exited with {process.returncode}")


def make(place: Path, size: int) -> None:
    """Texts of `size` bytes in files of PART, sums beside them, and what the stages want to be told."""
    (place / "texts").mkdir(parents=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in documents(sentences()))
    for number in count():
        with (place / f"texts/{number:03}.jsonl").open("w", encoding="utf-8") as file:
            for line in lines:
                size -= file.write(line)
                if size <= 0 or file.tell() >= PART:
                    break
        if size <= 0:
            break
    sums = [{"id": str(n), "prompt": f"{n} + {n}?", "solution": f"#### {2 * n}"} for n in range(2000)]
    (place / "sums").mkdir()
    records.save(place / "sums", train=sums, held_out=sums)
    (place / "code.json").write_text("{}")
    with (place / "settings.yaml").open("w") as file:
        YAML(typ="safe").dump(SETTINGS, file)


def sentences() -> list[str]:
    found: list[str] = []
    for file in sorted(BOOKS.glob("*.jsonl.xz")):
        with lzma.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                text = " ".join(json.loads(line)["text"].split())
                found += [part for part in re.split(r"(?<=[.!?]) ", text) if 40 < len(part) < 400]
    return found


def documents(sentences: list[str]) -> Iterator[dict[str, str]]:
    """Without an end. The id of a copy is that of its original, and how similar the two are."""
    draw = random.Random(0)
    waiting: list[tuple[int, str]] = []  # texts of which a copy is still to come
    for number in count():
        text = " ".join(draw.choices(sentences, k=SENTENCES))
        yield {"id": str(number), "text": text}
        if draw.random() < 3 * PLANTED:
            waiting.append((number, text))
        if len(waiting) > 1000:  # a copy stands far from its original
            original, text = waiting.pop(draw.randrange(len(waiting)))
            copy = changed(text, draw.choice((0, 0.02, 0.1)), sentences, draw)
            yield {"id": f"{original}~{similarity(text, copy):.3f}", "text": copy}


def changed(text: str, share: float, sentences: list[str], draw: random.Random) -> str:
    """With so many of its words, half as many or twice as many, replaced by others."""
    words = text.split(" ")
    for _ in range(round(len(words) * share * draw.uniform(0.5, 2))):
        words[draw.randrange(len(words))] = draw.choice(sentences).split(" ")[0]
    return " ".join(words)


def similarity(one: str, other: str) -> float:
    """Exact Jaccard similarity of runs of five words."""
    words = (re.findall(r"\w+", text.casefold()) for text in (one, other))
    a, b = ({tuple(text[i : i + 5]) for i in range(len(text) - 4)} for text in words)
    return len(a & b) / len(a | b)


def found(texts: Path, kept: Path) -> dict[str, float]:
    """Of planted pairs that are similar, those of which one text is missing; of texts that are missing, those that
    are similar to another one."""
    there = {row["id"].split("/")[-1] for row in rows(kept)}
    missing = {row["id"] for row in rows(texts)} - there
    copies = [row["id"] for row in rows(texts) if "~" in row["id"]]
    dropped = {name for name in copies if name in missing or name.split("~")[0] in missing}
    near = {name for name in copies if SIMILAR <= float(name.split("~")[1]) < 1}
    same = {name for name in copies if float(name.split("~")[1]) == 1}
    return {
        "near_duplicate_recall": round(len(near & dropped) / len(near), 4),
        "near_duplicate_precision": round(len(near & dropped) / (len(missing) - len(same & dropped)), 4),
        "exact_duplicate_recall": round(len(same & dropped) / len(same), 4),
        "planted_near": len(near),
        "planted_exact": len(same),
    }


def rows(folder: Path) -> Iterator[dict[str, str]]:
    for file in sorted(folder.glob("*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


if __name__ == "__main__":
    command(main)
