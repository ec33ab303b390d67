"""Replies as steps: the same in text and in tokens."""

import pytest

from stages.lib.text import steps


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n ", []),
        ("one", ["one"]),
        ("one\ntwo", ["one\n", "two"]),
        ("\n\none\n\n  two \n", ["\n\none\n\n  ", "two \n"]),
        ("a\nb\n#### 4", ["a\n", "b\n", "#### 4"]),
    ],
)
def test_of_texts(text, expected, tokenizer):
    assert steps.of(text) == expected
    if expected:
        assert "".join(expected) == text
        reply = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        ends = steps.ends(tokenizer, reply)
        assert ends[-1] == len(reply) - 1
        begins = [0, *(end + 1 for end in ends[:-1])]
        said = [tokenizer.decode(reply[a : b + 1], skip_special_tokens=True) for a, b in zip(begins, ends, strict=True)]
        assert [part.strip() for part in said] == [part.strip() for part in expected]
        assert "".join(said) == text
