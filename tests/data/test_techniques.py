"""What every data technique must hold. A new file in stages/data/ is picked up here."""

import json
from pathlib import Path

import pytest

from stages.data.parts import clean
from stages.lib.frame import params
from stages.lib.store import records

WORKED = Path("stages/data/parts/worked.py")
FAMILIES = {"chain_sum": {"max_terms": 2, "max_digits": 2}, "spell_backward": {"max_word_len": 5}, "syllogism": {}}
SETTINGS = {
    "problems": {"families": FAMILIES, "per_family": 40},
    "pairs": {"per_family": 20},
    "instructions": {"count": 60},
}


@pytest.fixture(params=params.techniques("data"))
def name(request):
    return request.param


@pytest.fixture
def technique(name):
    return make(name)


def make(name, **more):
    given = {"method": name, "source": "unused", "licence": "none"} | SETTINGS.get(name, {}) | more
    return params.technique_class("data", name).model_validate(given)


@pytest.fixture
def source(name, texts, tmp_path):
    """What each technique reads: text files, the solver module, or records of another technique."""
    documents = [{"id": str(i), "source": "moby-dick", "text": text} for i, text in enumerate(texts)]
    if name == "problems":
        return WORKED
    if name == "pairs":
        rows = list(make("problems").records(WORKED))
        records.save(tmp_path, train=rows[::2], held_out=rows[1::2])
    elif name == "instructions":
        records.save(tmp_path, train=documents[:30], held_out=documents[30:])
    else:
        said = [{"prompt": d["text"][:60], "completion": d["text"][60:]} for d in documents]
        liked = [{"prompt": d["text"][:60], "chosen": d["text"][60:], "rejected": d["id"]} for d in documents]
        found = [{"text": d["text"], "fields": {"source": d["source"]}} for d in documents]
        labelled = [{"text": d["text"], "label": int(d["id"]) % 2} for d in documents]
        own = {"chats": said, "classify": labelled, "extract": found, "preferences": liked}
        rows = own.get(name, documents)
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_every_record_has_an_id_a_kind_and_something_to_learn(technique, source):
    for row in technique.records(source):
        assert row["id"] and (row.get("family") or row.get("source"))
        assert clean.identity(row) and clean.weight(row) > 0


def test_the_same_params_give_the_same_records(technique, source):
    assert list(technique.records(source)) == list(technique.records(source))


def test_no_record_is_in_both_splits(technique, source):
    splits = {"train": set(), "held_out": set()}
    for row in technique.records(source):
        splits[clean.split(row, 0.3, seed=0)].add(clean.identity(row))
    assert splits["train"] and splits["held_out"] and not splits["train"] & splits["held_out"]
