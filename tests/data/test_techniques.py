"""What every data technique must hold. A new file in stages/data/ is picked up here."""

import json
from importlib import import_module

import pytest

from stages.data.parts import clean
from stages.lib.frame import params
from stages.lib.store import records

FAMILIES = {"chain_sum": {"max_terms": 2, "max_digits": 2}, "spell_backward": {"max_word_len": 5}, "syllogism": {}}
SETTINGS = {
    "problems": {"families": FAMILIES, "per_family": 40},
    "pairs": {"per_family": 20},
    "instructions": {"count": 60},
}


@pytest.fixture(params=params.techniques("data"))
def technique(request):
    return import_module(f"stages.data.{request.param}")


def make(technique, **more):
    name = technique.__name__.rsplit(".", 1)[1]
    given = {"method": name, "source": "unused", "licence": "none"} | SETTINGS.get(name, {}) | more
    return technique.Params(**given)


@pytest.fixture
def source(technique, texts, tmp_path):
    """What each technique reads: text files, the solver module, or records of another technique."""
    name = technique.__name__.rsplit(".", 1)[1]
    documents = [{"id": str(i), "source": "moby-dick", "text": text} for i, text in enumerate(texts)]
    if name == "problems":
        from pathlib import Path

        return Path("stages/data/parts/worked.py")
    if name == "pairs":
        from pathlib import Path

        from stages.data import problems

        rows = list(problems.read(Path("stages/data/parts/worked.py"), make(problems)))
        records.save(tmp_path, train=rows[::2], held_out=rows[1::2])
    elif name == "instructions":
        records.save(tmp_path, train=documents[:30], held_out=documents[30:])
    else:
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    return tmp_path


def test_every_record_has_an_id_a_kind_and_something_to_learn(technique, source):
    for row in technique.read(source, make(technique)):
        assert row["id"] and (row.get("family") or row.get("source"))
        assert clean.identity(row) and clean.weight(row) > 0


def test_the_same_params_give_the_same_records(technique, source):
    assert list(technique.read(source, make(technique))) == list(technique.read(source, make(technique)))


def test_no_record_is_in_both_splits(technique, source):
    rows = clean.without_duplicates(list(technique.read(source, make(technique))))
    train, held_out = clean.split(rows, 0.3, seed=0)
    assert train and held_out
    assert not {clean.identity(row) for row in train} & {clean.identity(row) for row in held_out}
