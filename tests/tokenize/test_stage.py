"""The mixture of rows: which share of the tokens are problems, how many there are, and in which order."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from stages.lib.frame import files
from stages.lib.store import records, tokens
from stages.lib.text import chat
from stages.tokenize import __main__ as stage
from stages.tokenize.bpe import BPE

CONTEXT, BUDGET = 32, 8000


def technique(**more):
    return BPE(method="bpe", documents="data/a", problems="data/b", vocab_size=512, context=CONTEXT, **more)


@pytest.fixture(scope="module")
def solved():
    return [{"prompt": f"Say {n} and {n * n}.", "solution": f"{n} * {n}\n#### {n * n}"} for n in range(800)]


@pytest.fixture(scope="module")
def documents(texts):
    return [{"text": text} for text in texts]


@pytest.fixture
def mix(tokenizer, documents, solved, tmp_path):
    """mix(solved=..., place=..., **params): the rows that were written, none if there are none."""

    def mix(solved=solved, place=tmp_path, **given):
        count = stage.mix(tokenizer, documents, solved, BUDGET, technique(**given), place)
        return tokens.load(place, "rows") if count else []

    return mix


def is_problem(tokenizer, rows):
    """Whether a row holds a mark of a chat: no document does, and no turn of these problems is as long as a row."""
    marks = tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>", "<|end|>"])
    return np.isin(rows, marks).any(axis=1)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7, 0.9])
def test_problems_are_the_share_of_the_tokens_that_was_asked_for(share, tokenizer, mix):
    rows = mix(problem_share=share)
    problems = is_problem(tokenizer, rows).sum()
    assert problems == round(BUDGET * share) // CONTEXT
    assert len(rows) - problems == (BUDGET - problems * CONTEXT) // CONTEXT


def test_documents_fill_up_where_problems_run_out(tokenizer, mix, solved):
    rows = mix(solved[:20], problem_share=0.9)
    assert 0 < is_problem(tokenizer, rows).sum() < 30
    assert rows.size == BUDGET // CONTEXT * CONTEXT


def test_the_seed_is_the_order(mix, tmp_path):
    one, same, other = (mix(place=tmp_path / str(n), seed=seed) for n, seed in enumerate((0, 0, 1)))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_no_row_of_one_kind_is_no_row_at_all(mix, solved):
    assert not len(mix(solved[:1]))


@pytest.mark.parametrize("piece", [1, 1000, 10**6])
def test_rows_are_those_of_all_texts_in_memory(piece, tokenizer, documents, solved, mix, monkeypatch):
    """Text by text into one stream for each kind, the streams cut into rows, the rows shuffled."""
    monkeypatch.setattr(stage, "PIECE", piece)
    order = np.random.default_rng(0)
    start = chat.start(tokenizer)
    drawn = [[rows[i] for i in order.permutation(len(rows))] for rows in (solved, documents)]
    asked = [i for row in drawn[0] for i in chat.chat_ids(tokenizer, row["prompt"], row["solution"])]
    prose = [i for row in drawn[1] for i in start + chat.text_ids(tokenizer, row["text"])]
    problems = tokens.pack([asked[: round(BUDGET * 0.4)]], CONTEXT, 512)
    texts = tokens.pack([prose[: BUDGET - problems.size]], CONTEXT, 512)
    expected = np.concatenate([problems, texts])
    rows = mix(problem_share=0.4)
    assert rows.dtype == expected.dtype
    assert np.array_equal(rows, expected[order.permutation(len(expected))])


def test_pieces_that_are_there_are_not_encoded_again(mix, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "PIECE", 1000)
    before = mix().copy()
    (tmp_path / "documents/000001.npy").unlink()
    first = tmp_path / "documents/000000.npy"
    np.save(first, np.zeros_like(np.load(first)))
    after = mix()
    assert 0 < (before != after).sum() < 1000 and not after[before != after].any()


def test_the_vocabulary_is_learnt_from_both_halves_and_no_more_text_than_asked_for(documents, solved):
    sample = list(stage.sample(documents, solved, 10_000, seed=0))
    problems = {f"{row['prompt']}\n{row['solution']}" for row in solved}
    of_problems = [text for text in sample if any(text == problem[: len(text)] for problem in problems)]
    assert sum(map(len, of_problems)) == 5000 and sum(map(len, sample)) == 10_000
    assert not list(stage.sample(documents, solved, 0, seed=0))  # nothing for a vocabulary that is given


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was_and_ends_as_another(documents, solved, tmp_path, monkeypatch):
    """SIGKILL as soon as some pieces are there, then again: the bytes of a run without a kill."""
    monkeypatch.chdir(tmp_path)
    for name, rows in {"a": documents * 40, "b": solved}.items():
        Path(name).mkdir()
        records.save(Path(name), train=rows, held_out=rows[:40])
    entry = technique(train_tokens=10**6, held_out_tokens=5000).model_dump(mode="json")
    with Path("settings.yaml").open("w") as file:
        parents = {name: {"method": "documents", "source": "x", "licence": "none"} for name in "ab"}
        YAML(typ="safe").dump({"data": parents, "tokenize": {"bpe": entry}}, file)
    Path("code.json").write_text("{}")
    options = {"documents": "a", "problems": "b", "code": "code.json", "checkpoints": "kept"}
    given = [word for name, value in options.items() for word in (f"--{name}", value)]
    words = [sys.executable, "-m", "stages.tokenize", "bpe", "--params-file", "settings.yaml", *given, "--out"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([*words, "whole"], check=True, env=environment)
    with subprocess.Popen([*words, "killed"], env=environment) as process:
        while not (pieces := sorted(Path("kept").glob("*/train/documents/*.npy"))):
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    assert pieces[0].is_file() and not Path("killed/tokens").exists()
    subprocess.run([*words, "killed"], check=True, env=environment)
    for name in ("tokens", "tokenizer", "metrics.json"):
        assert files.digest(Path("whole", name)) == files.digest(Path("killed", name))
    assert not list(Path("kept").iterdir())
