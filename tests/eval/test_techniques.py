"""What every technique of the stage promises; a new file is tested here by existing."""

from math import isfinite

import pytest

from stages.eval import TECHNIQUES
from stages.lib.frame import params


@pytest.fixture
def few(data):
    return data._replace(documents=data.documents[:4], problems=data.problems[::5])


@pytest.mark.parametrize("name", params.techniques("eval"))
def test_measures_a_model_in_finite_numbers(name, ignorant, few):
    technique = TECHNIQUES[name]

    scores = technique.score(ignorant, few, technique.Params())

    assert scores and all(isfinite(value) for value in scores.values() if not isinstance(value, dict))
    if technique.REPEATABLE:
        assert technique.score(ignorant, few, technique.Params()) == scores


def test_no_two_techniques_use_one_name(oracle, few):
    scores = [name for each in TECHNIQUES.values() for name in each.score(oracle, few, each.Params())]

    assert len(scores) == len(set(scores))


def test_a_variant_takes_the_params_of_every_technique_and_no_others():
    from stages.eval import Params

    parents = {"model": "align/dpo", "documents": "data/corpus", "problems": "data/problems"}

    assert Params.model_validate({**parents, "accuracy": {"per_family": 3}}).accuracy.per_family == 3
    assert set(TECHNIQUES) < set(Params.model_fields)
    with pytest.raises(ValueError, match="accuracy.per_familly"):
        Params.model_validate({**parents, "accuracy": {"per_familly": 3}})
