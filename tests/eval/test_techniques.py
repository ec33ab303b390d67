"""What every measure of records promises; a new file is tested here by existing."""

from math import isfinite

import pytest

from stages.lib.frame import params

OTHERS = ("harness", "judge")  # of chosen models: test_harness.py, test_judge.py
MEASURES = [name for name in params.techniques("eval") if name not in OTHERS]


def few(name, documents, problems):
    """A few of the records that a measure wants."""
    return problems[::5] if name == "accuracy" else documents[:4]


def make(name, **more):
    return params.technique_class("eval", name).model_validate({"records": "data/any", **more})


@pytest.mark.parametrize("name", MEASURES)
def test_measures_a_model_in_finite_numbers(name, model_folder, documents, problems):
    records = few(name, documents, problems)
    scores, again = (make(name).evaluate(model_folder, records) for _ in range(2))

    assert scores.metrics and all(isfinite(value) for value in scores.metrics.values())
    assert all(isfinite(value) for value in scores.timings.values())
    assert (again.metrics, again.samples) == (scores.metrics, scores.samples)


def test_no_two_measures_use_one_name(model_folder, documents, problems):
    all_scores = [make(name).evaluate(model_folder, few(name, documents, problems)) for name in MEASURES]
    names = [name for scores in all_scores for numbers in scores for name in numbers]

    assert len(names) == len(set(names))


def test_together_they_measure_what_gates_and_report_read(model_folder, documents, problems):
    all_scores = [make(name).evaluate(model_folder, few(name, documents, problems)) for name in MEASURES]
    metrics = {name for scores in all_scores for name in scores.metrics if "." not in name}

    assert metrics == {
        *("accuracy", "accuracy_low", "accuracy_high", "accuracy_macro", "accuracy_lenient", "num_problems"),
        *("bits_per_byte", "parameters", "bits_per_weight", "bytes"),
    }
