"""What profile `specialist` has made, beside what one would use instead with the same thousand labels.

make run PROFILE=specialist && python -m benchmarks.specialist          (or PROFILE=specialist-seeds: three students)

Peers: VADER's lexicon (Hutto & Gilbert 2014), which learns nothing; TF-IDF of words and characters with logistic
regression, of the thousand labels and of all sentences that the teacher has labelled. Accuracies are of the 2,000
held-out sentences, with Wilson's intervals, read from the profile's evaluations; `clear` where the mean rating is 0.5
or more from zero; `seeds_*` of the shipped model and those named after it with a number. Out of domain: sentences about
products, which nobody has learnt from. Sentences a second and joules a sentence are each model's in the runtime it
ships for, one sentence at a time.
"""

import importlib.util
import re
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import cyclopts

from benchmarks import _result
from stages.data.parts import reading
from stages.eval.accuracy import summary
from stages.lib.frame import energy, files, gates, params
from stages.lib.runtimes import labels
from stages.lib.runtimes.base import file_bytes
from stages.lib.runtimes.open import open_runtime
from stages.lib.store import records
from stages.lib.text import labels as tasks

RESULT = Path("benchmarks/results/specialist.json")
PACKAGE, REVIEWS = Path("models/vaderSentiment-3.3.2.tar.gz"), Path("models/reviews")
CLEAR = 0.5  # from zero, in the mean of twenty ratings from -4 to 4
Marks = dict[str, bool]  # id of a held-out sentence -> right


def main(*, products: int = 1000, timed: int = 100, out: Path = RESULT) -> None:
    """`products`: how many sentences out of domain; `timed`: how many are timed, three times."""
    tree = params.read()
    gate, models = gates.read(tree), params.models(tree)
    assert gate, "profile specialist has gates"
    held_out, other = (rows(REVIEWS / name / "held_out.jsonl") for name in ("labelled", "products"))
    ratings = {f"held_out/{row['id']}": abs(row["rating"]) for row in held_out}
    found: dict[str, Any] = {f"{name}_bytes": file_bytes(place(model)) for name, model in models.items()}
    marks = {name: judged(name) for name in models}
    marks |= peers(held_out)
    for name, own in marks.items():
        told = summary(list(own.values()))
        found |= {f"{name}_accuracy{key.removeprefix('accuracy')}": told[key] for key in told if key != "num_problems"}
        found[f"{name}_accuracy_clear"] = mean(right for key, right in own.items() if ratings[key] >= CLEAR)
    for name in (gate.teacher, gate.student):
        found |= used(name, place(models[name]), held_out[:timed], other[:products])
    seeds = [name for name in models if re.fullmatch(rf"{gate.student}(-\d+)?", name)]
    accuracies = [found[f"{name}_accuracy"] for name in seeds]
    found |= {"seeds_count": len(seeds), "seeds_mean": mean(accuracies), "seeds_worst": min(accuracies)}
    found["ratio_bytes"] = found[f"{gate.teacher}_bytes"] / found[f"{gate.student}_bytes"]
    found["accuracy_kept"] = found[f"{gate.student}_accuracy"] / found[f"{gate.teacher}_accuracy"]
    for name, value in sorted(found.items()):
        print(f"{name:45} {value:,.4g}")
    _result.save(out, found, "torch", "transformers", "xllamacpp", "scikit-learn")


def used(name: str, folder: Path, held_out: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, float]:
    """A model in its runtime: out of domain, and what a sentence takes."""
    task, runtime = labels.of(folder), open_runtime(folder)
    if task is None:
        raise SystemExit(f"{folder} has learnt no labels")

    def asked(sentences: list[dict[str, Any]]) -> Any:
        return labels.probabilities(runtime, task, [each["text"] for each in sentences])

    right = [task.labels[best] == row["label"] for best, row in zip(asked(other).argmax(1), other, strict=True)]
    asked(held_out)
    times = []
    with energy.meter() as spent:
        for _ in range(3):
            start = perf_counter()
            asked(held_out)
            times.append(perf_counter() - start)
    return {
        f"out_of_domain_{name}_accuracy": mean(right),
        f"{name}_sentences_per_s": len(held_out) / median(times),
        f"{name}_joules_per_sentence": spent["joules"] / (3 * len(held_out)),
        f"{name}_energy_measured": spent["energy_measured"],
    }


def place(model: str) -> Path:
    return Path("artifacts") / model / "model"


def rows(file: Path) -> list[dict[str, Any]]:
    return list(reading.rows(file, ()))


def judged(model: str) -> Marks:
    return files.read_json(Path(f"artifacts/eval/{model}/accuracy/samples.json"))["right"]


def peers(held_out: list[dict[str, Any]]) -> dict[str, Marks]:
    labelled = rows(REVIEWS / "labelled" / "train.jsonl")
    taught = records.load(Path("artifacts/traces/labels/records"), "train")
    task = tasks.task(taught)
    assert task, "traces/labels has one task"
    texts, told = [task.text(row["prompt"]) for row in taught], [row["solution"] for row in taught]
    polarity = vader()
    said = {
        "vader": ["positive" if polarity(row["text"])["compound"] > 0 else "negative" for row in held_out],
        "tfidf": tfidf([row["text"] for row in labelled], [row["label"] for row in labelled], held_out),
        "tfidf_teacher_labels": tfidf(texts, told, held_out),
    }
    return {
        name: {f"held_out/{row['id']}": each == row["label"] for row, each in zip(held_out, own, strict=True)}
        for name, own in said.items()
    }


def tfidf(texts: list[str], known: list[str], held_out: list[dict[str, Any]]) -> list[str]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    model = make_pipeline(make_union(words, characters), LogisticRegression(C=10, max_iter=1000))
    return list(model.fit(texts, known).predict([row["text"] for row in held_out]))


def vader() -> Callable[[str], dict[str, float]]:
    """Its polarity scores, from the package whose sha256 benchmarks/reviews.py has checked."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(PACKAGE) as package:
            package.extractall(folder, filter="data")
        place = next(Path(folder).glob("*/vaderSentiment/vaderSentiment.py"))
        spec = importlib.util.spec_from_file_location("vaderSentiment", place)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.SentimentIntensityAnalyzer().polarity_scores  # it has read its lexicon by now


if __name__ == "__main__":
    cyclopts.run(main)
