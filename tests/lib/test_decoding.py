"""What a model writes is what its logits say, whatever its generation_config.json says."""

import pytest
import torch

from stages.lib.nets import decoding

OTHERS = [
    {"repetition_penalty": 1.3, "top_p": 0.8, "top_k": 20},
    {"no_repeat_ngram_size": 2},
    {"suppress_tokens": list(range(0, 400, 2))},
    {"min_new_tokens": 8, "forced_eos_token_id": 7},
    {"do_sample": True, "temperature": 3.0},
    {"eos_token_id": list(range(10, 500))},
]


def by_hand(model, prompt, count):
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.fixture
def prompts(tokenizer):
    return [tokenizer.encode(text) for text in ("Call me", "Call me Ishmael. Some years ago", "the the the the")]


def decode(model, prompts, count, stops=(), temperature=0.0):
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(each)) + each for each in prompts])
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts])
    return decoding.decode(model, ids, mask, count, stops, temperature, pad=0).tolist()


@pytest.mark.parametrize("others", OTHERS)
@torch.no_grad()
def test_greedy_is_the_argmax(tiny, prompts, others):
    own = tiny.generation_config
    own.update(**others)
    assert decode(tiny, prompts, 10) == [by_hand(tiny, prompt, 10) for prompt in prompts]
    assert tiny.generation_config is own, "it is saved with the model as it came"


@torch.no_grad()
def test_any_of_the_stops_ends_a_row(tiny, prompts):
    whole = decode(tiny, prompts, 12)
    stops = {whole[0][4], whole[1][7]}
    for stopped, row in zip(decode(tiny, prompts, 12, stops), whole, strict=True):
        assert decoding.until(stopped, stops) == decoding.until(row, stops)


@torch.no_grad()
def test_samples_are_of_the_whole_distribution(tiny, prompts):
    """At a high temperature most tokens of the vocabulary come up, also outside of top-k and top-p of its config."""
    tiny.generation_config.update(top_k=5, top_p=0.1)
    torch.manual_seed(0)
    drawn = {token for row in decode(tiny, prompts[:1] * 64, 16, temperature=50.0) for token in row}
    assert len(drawn) > 0.7 * tiny.config.vocab_size


@torch.no_grad()
def test_a_prompt_is_read_once_and_rows_that_have_ended_are_put_aside(tiny, prompts):
    whole = decode(tiny, prompts, 40)
    stops = {whole[0][2], whole[2][5]}
    ends = [next((place + 1 for place, token in enumerate(row) if token in stops), 40) for row in whole]
    assert len(set(ends)) > 1 and max(ends) == 40 and min(ends) < decoding.CHUNK
    sizes = []
    tiny.model.register_forward_pre_hook(
        lambda _, given, more: sizes.append(tuple(more["input_ids"].shape)), with_kwargs=True
    )
    found = decode(tiny, [prompts[n] for n in (0, 1, 2, 1, 0)], 40, stops)
    assert sizes[0] == (3, max(map(len, prompts)) - 1) and all(width == 1 for _, width in sizes[1:])
    for place, (rows, _) in enumerate(sizes[1:]):
        looked = place // decoding.CHUNK * decoding.CHUNK
        assert rows == sum(ends[n] > looked for n in (0, 1, 2, 1, 0))
    for row, n in zip(found, (0, 1, 2, 1, 0), strict=True):
        assert row == [*whole[n][: ends[n]], *[0] * (40 - ends[n])]
