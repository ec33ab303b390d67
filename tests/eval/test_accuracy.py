import pytest

from stages.eval import accuracy
from stages.eval.parts import spoken


@pytest.mark.parametrize(("right", "number"), [(0, 1), (0, 24), (1, 1), (7, 24), (12, 24), (24, 24), (700, 1000)])
def test_wilson_interval_equals_scipys(right, number):
    from scipy.stats import binomtest

    expected = binomtest(right, number).proportion_ci(0.95, method="wilson")

    assert accuracy.wilson(right, number) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_oracle_is_always_right(oracle, data):
    scores = accuracy.score(oracle, data, accuracy.Params())

    assert {scores[key] for key in ("accuracy", "accuracy_macro", "accuracy.gcd")} == {1}
    assert scores["accuracy_high"] == pytest.approx(1)
    assert (scores["num_problems"], scores["num_problems.gcd"]) == (15, 5)


def test_untrained_model_is_never_right(ignorant, data):
    """Nothing can be guessed: an answer counts only in the form that training teaches."""
    scores = accuracy.score(ignorant, data, accuracy.Params(max_new_tokens=16))

    assert (scores["accuracy"], scores["accuracy_low"]) == (0, 0)


def test_pooled_is_a_mean_over_problems_macro_over_families(oracle, data):
    """Right in all 5 of gcd and in none of the 2 of chain_sum: 5 of 7, and 1 of 2."""
    sums, gcds = ([row for row in data.problems if row["family"] == family] for family in ("chain_sum", "gcd"))
    knows_gcd = type(oracle)(oracle.tokenizer, gcds)

    scores = accuracy.score(knows_gcd, data._replace(problems=[*sums[:2], *gcds]), accuracy.Params())

    assert scores["accuracy"] == pytest.approx(5 / 7)
    assert scores["accuracy_macro"] == pytest.approx(1 / 2)
    assert (scores["accuracy.chain_sum"], scores["accuracy.gcd"]) == (0, 1)


def test_asks_at_most_so_many_of_a_family(oracle, data):
    scores = accuracy.score(oracle, data, accuracy.Params(per_family=2))

    assert (scores["num_problems"], scores["num_problems.chain_sum"]) == (6, 2)


def test_samples_show_what_was_asked_and_whether_it_was_right(oracle, data):
    samples = spoken.collect(oracle, data, accuracy.Params())

    assert [each["family"] for each in samples["answers"]] == ["chain_sum", "gcd", "spell_backward"]
    assert all(each["correct"] and each["answer"].endswith(each["expected"]) for each in samples["answers"])
    openings = [each["opening"] for each in samples["continuations"]]
    assert all(data.documents[n]["text"].startswith(text) for n, text in zip((0, 13, 26), openings, strict=True))
