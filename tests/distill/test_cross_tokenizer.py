"""Spans and distances by loops, by hand, at equality and against trl's ULD."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from stages.distill import Teacher, cross_tokenizer
from stages.lib.frame.errors import UserError
from stages.lib.nets import packed
from stages.lib.store import records
from stages.lib.text import chat

GIVEN = {"method": "cross_tokenizer", "training": {"steps": 1, "batch_size": 3}}
PARENTS = dict.fromkeys(("model", "teacher", "traces", "tokens"), "a/b")
SAID = ["the whale is white: #### 7", "é, naïve – 北京 🐋 and", "Ishmael said nothing. #### 42"]
ROWS = [{"id": str(n), "prompt": f"Say {n}", "solution": said} for n, said in enumerate(SAID)]


def params(**more):
    return cross_tokenizer.CrossTokenizer(**GIVEN | PARENTS | more)


@pytest.fixture(scope="module")
def other(texts):
    """Another, larger vocabulary, of other words."""
    from stages.tokenize import bpe

    p = bpe.BPE(method="bpe", documents="data/corpus", problems="data/problems", vocab_size=600)
    return p.train([*SAID, *texts[::9]])


@pytest.fixture
def teacher(other, llama):
    return Teacher(llama(len(other), seed=5), other)


@pytest.fixture
def batch(tokenizer, tmp_path):
    records.save(tmp_path, train=ROWS)
    return lambda p: p.batches(tokenizer, tmp_path)(0)


def reply_bytes(tokenizer, row):
    """Bytes of every reply token of the solution, by the byte-level alphabet."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    back = {letter: byte for byte, letter in bytes_to_unicode().items()}
    begin = len(chat.prompt_ids(tokenizer, row["prompt"]))
    ids = chat.chat_ids(tokenizer, row["prompt"], row["solution"])[begin:-1]
    pieces = [bytes(back[letter] for letter in piece) for piece in tokenizer.convert_ids_to_tokens(ids)]
    assert b"".join(pieces).decode() == row["solution"]
    return pieces


def test_marks_are_where_whole_characters_end_by_the_bytes(tokenizer, other):
    for each in (tokenizer, other):
        found = cross_tokenizer.marks(each, ROWS, "spans")
        begin = 0
        for number, row in enumerate(ROWS):
            expected, read = {(number, 0): begin - 1}, b""
            pieces = reply_bytes(each, row)
            for i, piece in enumerate(pieces):
                read += piece
                if len(read.decode(errors="ignore").encode()) == len(read):
                    expected[number, len(read.decode())] = begin + i
            assert {mark: place for mark, place in found.items() if mark[0] == number} == expected
            begin += len(pieces) + 1  # and the end token


def test_both_read_the_same_text_between_marks(tokenizer, other):
    mine, theirs = (cross_tokenizer.marks(each, ROWS, "spans") for each in (tokenizer, other))
    common = sorted(mine.keys() & theirs.keys())
    assert all((n, len(row["solution"])) in common for n, row in enumerate(ROWS))
    assert len(common) < min(len(mine), len(theirs)), "each cuts where the other does not"


def test_a_span_is_the_chain_rule_by_hand():
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.7, 0.2, 0.1], [0.2, 0.2, 0.6]])
    tokens = torch.tensor([1, 2, 0, 2])
    marks = {(0, 0): -1, (0, 3): 0, (0, 7): 2, (1, 0): 2, (1, 2): 3}
    merged = cross_tokenizer.merged(p.log(), tokens, marks, sorted(marks))
    expected = torch.stack([p[0], p[1, 2] * p[2], p[3]])  # one token; two, of which the first is token 2; one
    torch.testing.assert_close(merged, expected)


def test_the_distance_by_loops():
    torch.manual_seed(0)
    p, q = torch.randn(4, 7).softmax(-1), torch.randn(4, 5).softmax(-1)
    total = 0.0
    for g in range(4):
        a, b = sorted(p[g].tolist(), reverse=True), sorted(q[g].tolist(), reverse=True) + [0, 0]
        total += sum(abs(x - y) for x, y in zip(a, b, strict=True))
    assert cross_tokenizer.distance(p, q).item() == pytest.approx(total / 4, rel=1e-5)
    assert cross_tokenizer.distance(p, p[:, torch.randperm(7)]).item() == 0, "no token needs a counterpart"
    assert cross_tokenizer.distance(p, q) == cross_tokenizer.distance(q, p)


@pytest.mark.parametrize("align", ["spans", "positions"])
def test_of_the_teacher_itself_only_the_data_is_left(batch, tiny, tokenizer, align):
    b = batch(params(align=align))
    torch.testing.assert_close(params(align=align).loss(tiny, Teacher(tiny, tokenizer), b), packed.loss(tiny, b))


def test_positions_are_the_papers_by_loops(batch, tiny, tokenizer, teacher):
    """n-th token with n-th token of each reply, the longer cut off; end tokens are tokens."""
    p = params(align="positions")
    total = number = 0
    for row in ROWS:
        sides = []
        for model, vocabulary in ((tiny, tokenizer), teacher):
            ids = chat.chat_ids(vocabulary, row["prompt"], row["solution"])
            begin = len(chat.prompt_ids(vocabulary, row["prompt"]))
            sides.append(model(torch.tensor([ids])).logits[0, begin - 1 : -1].softmax(-1))
        for mine, theirs in zip(*sides, strict=False):
            a, b = mine.sort(descending=True).values, theirs.sort(descending=True).values
            total += (F.pad(a, (0, len(b) - len(a))) - b).abs().sum()
            number += 1
    b = batch(p)
    expected = packed.loss(tiny, b) + 1.5 * total / number
    assert sorted(b["rows"], key=lambda row: row["id"]) == ROWS
    torch.testing.assert_close(p.loss(tiny, teacher, b), expected)


@pytest.mark.slow
@pytest.mark.parametrize("align", ["spans", "positions"])
def test_it_is_trls(tiny, tokenizer, teacher, align):
    """GOLD's ULD with its `bayesian` merging, over one example in ASCII (it also cuts inside other characters)."""
    from trl.experimental.gold.gold_trainer import ULDLoss
    from trl.experimental.utils import encode_with_byte_offsets

    row, spans = ROWS[0], align == "spans"
    said = {"uld_crossentropy_weight": 0, "uld_distillation_weight": 1}
    said |= {"uld_student_temperature": 1, "uld_teacher_temperature": 1, "uld_token_merge_strategy": "bayesian"}
    said |= dict.fromkeys(("uld_skip_student_eos", "uld_skip_teacher_eos", "use_extended_uld"), spans)
    given = []
    for model, vocabulary in ((tiny, tokenizer), teacher):
        ids = torch.tensor([chat.chat_ids(vocabulary, row["prompt"], row["solution"])])
        begin = len(chat.prompt_ids(vocabulary, row["prompt"]))
        labels = ids.clone()
        labels[:, :begin] = -100
        ((_, offsets),) = encode_with_byte_offsets(vocabulary.backend_tokenizer, [row["solution"]])
        places = torch.zeros(1, ids.shape[1], 2, dtype=torch.long)
        places[0, begin:-1] = torch.tensor(offsets)
        given.append((model(ids).logits, labels, ids, places))
    expected = ULDLoss(SimpleNamespace(**said))(*(each for pair in zip(*given, strict=True) for each in pair))
    mine, theirs = (cross_tokenizer.marks(each, [row], align) for each in (tokenizer, teacher.tokenizer))
    common = sorted(mine.keys() & theirs.keys())
    merged = []
    for (logits, labels, _, _), marks in zip(given, (mine, theirs), strict=True):
        learnt = labels[0, 1:] >= 0
        merged.append(cross_tokenizer.merged(logits[0, :-1][learnt], labels[0, 1:][learnt], marks, common))
    torch.testing.assert_close(cross_tokenizer.distance(*merged), expected)


def test_the_student_is_taught_and_the_teacher_is_not(batch, tiny, teacher):
    p = params()
    b = batch(p)
    p.loss(tiny, teacher, b).backward()
    assert all(w.grad is not None for w in tiny.parameters()) and all(
        w.grad is None for w in teacher.model.parameters()
    )
    assert params(weight=0).loss(tiny, teacher, b) == packed.loss(tiny, b)


def test_a_template_that_changes_the_solution_is_refused(tokenizer):
    import copy

    shouting = copy.deepcopy(tokenizer)
    shouting.chat_template = tokenizer.chat_template.replace("message['content']", "message['content'] | upper")
    with pytest.raises(UserError, match="the chat template changes or drops the answer"):
        cross_tokenizer.marks(shouting, ROWS, "spans")
