import json

import pytest

from stages.eval import accuracy
from stages.lib.frame.errors import UserError


@pytest.mark.parametrize(("right", "number"), [(0, 1), (0, 24), (1, 1), (7, 24), (12, 24), (24, 24), (700, 1000)])
def test_wilson_interval_equals_scipys(right, number):
    from scipy.stats import binomtest

    expected = binomtest(right, number).proportion_ci(0.95, method="wilson")

    assert accuracy.wilson(right, number) == pytest.approx((expected.low, expected.high), abs=1e-12)


def measure(**more):
    return accuracy.Accuracy(records="data/problems", **more)


def test_oracle_is_always_right(oracle, problems):
    metrics = measure().score(oracle, problems).metrics

    assert {metrics[key] for key in ("accuracy", "accuracy_macro", "accuracy.gcd")} == {1}
    assert metrics["accuracy_high"] == pytest.approx(1)
    assert (metrics["num_problems"], metrics["num_problems.gcd"]) == (15, 5)


def test_untrained_model_is_never_right(ignorant, problems):
    """Nothing can be guessed: an answer counts only in the form that training teaches."""
    metrics = measure(max_new_tokens=16).score(ignorant, problems).metrics

    assert (metrics["accuracy"], metrics["accuracy_low"]) == (0, 0)


def test_pooled_is_a_mean_over_problems_macro_over_families(oracle, problems):
    """Right in all 5 of gcd and in none of the 2 of chain_sum: 5 of 7, and 1 of 2."""
    sums, gcds = ([row for row in problems if row["family"] == family] for family in ("chain_sum", "gcd"))
    knows_gcd = type(oracle)(oracle.tokenizer, gcds)

    scores = measure().score(knows_gcd, [*sums[:2], *gcds])

    assert scores.metrics["accuracy"] == pytest.approx(5 / 7)
    assert scores.metrics["accuracy_macro"] == pytest.approx(1 / 2)
    assert (scores.metrics["accuracy.chain_sum"], scores.metrics["accuracy.gcd"]) == (0, 1)
    assert scores.samples["right"] == {row["id"]: row["family"] == "gcd" for row in [*sums[:2], *gcds]}


def test_leniently_the_last_word_is_an_answer_too(oracle, problems):
    """Of five gcds two are said without the mark, one wrong; the sums say nothing."""
    sums, gcds = ([row for row in problems if row["family"] == family] for family in ("chain_sum", "gcd"))
    says = [row | {"solution": f"It is {row['entry']['answer']}."} for row in gcds[:2]]
    says += [gcds[2] | {"solution": "It is -1."}, *gcds[3:], *(row | {"solution": "####"} for row in sums)]

    metrics = measure().score(type(oracle)(oracle.tokenizer, says), [*sums, *gcds]).metrics

    assert (metrics["accuracy.gcd"], metrics["accuracy_lenient.gcd"]) == (2 / 5, 4 / 5)
    assert (metrics["accuracy_lenient.chain_sum"], metrics["accuracy_lenient"]) == (0, 4 / 10)


def test_asks_at_most_so_many_of_a_family(oracle, problems):
    metrics = measure(per_family=2).score(oracle, problems).metrics

    assert (metrics["num_problems"], metrics["num_problems.chain_sum"]) == (6, 2)


def test_an_answer_ends_after_so_many_tokens(oracle, problems):
    """The oracle's solutions are "It is so." and the answer, which it has no room for."""
    assert measure(max_new_tokens=4).score(oracle, problems).metrics["accuracy"] == 0


def test_samples_show_what_was_asked_and_whether_it_was_right(oracle, problems):
    answers = measure().score(oracle, problems).samples["answers"]

    assert [shown["family"] for shown in answers] == ["chain_sum", "gcd", "spell_backward"]
    assert all(shown["correct"] and shown["answer"].endswith(shown["expected"]) for shown in answers)
    assert [shown["prompt"] for shown in answers] == [row["prompt"] for row in problems[::5]]


def test_records_without_an_answer_are_refused(oracle, documents):
    with pytest.raises(UserError, match="eval.accuracy.records: record '0' is no problem"):
        measure().score(oracle, documents)


def test_of_json_the_share_of_right_fields_is_told_too(oracle):
    known = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    rows = [
        {"id": str(n), "family": "extract", "prompt": f"Find {n}", "solution": json.dumps(found), "scorer": "json"}
        for n, found in enumerate(known)
    ]
    says = [row | {"solution": json.dumps(found | {"b": "x"})} for row, found in zip(rows, known, strict=True)]

    metrics = measure().score(type(oracle)(oracle.tokenizer, says), rows).metrics

    assert (metrics["accuracy"], metrics["fields_right"]) == (1 / 2, 3 / 4)
    assert (
        "fields_right"
        not in measure().score(oracle, [row | {"scorer": "pattern", "pattern": "x"} for row in rows]).metrics
    )


def test_unpaired_preferences_are_no_problems(oracle):
    row = {"id": "0", "family": "preference", "prompt": "?", "solution": "4", "liked": True}
    with pytest.raises(UserError, match="eval.accuracy.records: record '0' is no problem"):
        measure().score(oracle, [row])


def test_of_longer_free_texts_their_overlap_is_told(oracle):
    pytest.importorskip("rouge_score")
    row = {"id": "0", "family": "chat", "prompt": "Who?", "solution": "It was the cat that sat here."}

    def told(*rows):
        return {"rouge_l", "chrf"} & measure().score(type(oracle)(oracle.tokenizer, [row]), list(rows)).metrics.keys()

    assert told(row) == {"rouge_l", "chrf"}
    assert not told(row | {"scorer": "pattern", "pattern": "cat"})
