"""Which evolved prompts are kept, by hand."""

import pytest

from stages.lib.text import duplicates
from stages.traces.parts import evolution

SEEDS = [{"id": "a", "family": "f", "prompt": "How many legs have two dogs and a hen together, please?"},
         {"id": "b", "family": "f", "prompt": "Which day follows Sunday?"}]  # fmt: skip


def evolve(*rounds, seeds=SEEDS):
    """A teacher that says this, round by round."""
    asked = []

    def ask(prompts, number):
        asked.append(prompts)
        return list(rounds[number])

    return evolution.evolve(seeds, ask, len(rounds), words=20, seed=0), asked


def test_each_round_rewrites_the_last(tmp_path):
    one = ["How many legs have nine dogs, eight hens and a cat?", "Which day is it three days after next Sunday?"]
    two = ["Count the wheels of four bicycles and one lorry.", "Name the month that comes before last May."]
    out, asked = evolve(one, two)
    assert [row["prompt"] for row in out] == one + two
    assert [row["evolved_from"] for row in out] == ["a", "b", *(row["id"] for row in out[:2])]
    assert len({row["id"] for row in out}) == 4 and {row["family"] for row in out} == {"f"}
    for row, instruction in zip([*SEEDS, *out[:2]], sum(asked, []), strict=True):
        assert instruction.endswith(row["prompt"])
    for row, instruction in zip(out, sum(asked, []), strict=True):
        assert evolution.OPERATIONS[row["operation"]] in instruction


@pytest.mark.parametrize(
    "said",
    [
        "",
        "  \n",
        "I'm sorry, but I cannot do that.",
        "As an AI, I have no legs.",
        "word " * 21,
        "Rewritten prompt: how many legs has a spider?",
        "which  day follows SUNDAY?",
        "Please: How many legs have two dogs and a hen together, please?",
    ],
    ids=["empty", "blank", "refusal", "as an AI", "too long", "leak", "the same", "nearly the same"],
)
def test_what_is_dropped(said):
    good = "How many sides have seven triangles?"
    out, _ = evolve([said, good])
    assert [row["prompt"] for row in out] == [good]


def test_of_two_that_say_the_same_the_first_stays():
    text = "How many sides have seven triangles and one square?"
    assert [row["id"][0] for row in evolve([text, text.upper()])[0]] == ["a"]


def test_near_is_jaccard_of_five_word_runs():
    """Brute force on both sides of the threshold."""
    base = " ".join(f"w{i}" for i in range(60))
    for changed, new in ((1, False), (30, True)):
        other = " ".join(f"v{i}" if i >= 60 - changed else f"w{i}" for i in range(60))
        one, two = set(duplicates.shingles(base)), set(duplicates.shingles(other))
        assert (len(one & two) / len(one | two) < duplicates.SIMILAR) == new
        assert duplicates.Seen([base]).add(other) == new
