"""Recorded distributions on disk: what is read back, what it costs, what is refused."""

import json

import pytest
import torch
import torch.nn.functional as F

from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.store import traces

MADE_OF = {"teacher": "a" * 64, "tokenizer": "b" * 64, "tokens": "c" * 64}


def item(vocab, k, rows=8, positions=128):
    torch.manual_seed(0)
    logits = 3 * torch.randn(rows * 8, vocab).log_softmax(-1)
    logprob, index = (logits.repeat(positions // 8, 1).unflatten(0, (rows, positions))).log_softmax(-1).topk(k)
    ids = torch.randint(vocab, (rows, positions))
    return traces.Shard(ids, index, logprob, vocab)


@pytest.fixture
def recording(tmp_path):
    with files.writing(tmp_path / "records") as folder:
        said = traces.save(folder, MADE_OF, iter([item(512, 16), item(512, 16)]))
    assert (said["rows"], said["tokens"]) == (16, 2048)
    return tmp_path / "records"


@pytest.mark.parametrize("vocab", [1024, 49152])
def test_at_most_120_bytes_a_token_at_64(vocab, tmp_path):
    with files.writing(tmp_path / "records") as folder:
        said = traces.save(folder, MADE_OF, iter([item(vocab, 64)]))
    total = sum(file.stat().st_size for file in (tmp_path / "records").glob("*.safetensors"))
    assert said["bytes_per_token"] == total / 1024 <= 120


def test_batches_go_round_the_rows(recording):
    batch = traces.batches(recording, 6)
    expected = torch.cat([item(512, 16).ids] * 2)
    torch.testing.assert_close(torch.cat([batch(i)["ids"] for i in range(3)]), expected[[*range(16), 0, 1]])
    assert {name: (each.shape, each.dtype) for name, each in batch(1).items()} == {
        "ids": ((6, 128), torch.int64),
        "index": ((6, 128, 16), torch.int64),
        "logprob": ((6, 128, 16), torch.float32),
    }
    torch.testing.assert_close(batch(1)["index"][0], item(512, 16).index[6].sort(-1).values)


def test_a_seed_shuffles_the_rows_and_0_does_not(recording):
    def rows(seed):
        return [batch.tobytes() for batch in traces.batches(recording, 16, seed)(0)["ids"].numpy()]

    assert rows(0) != rows(1) == rows(1) != rows(2) and sorted(rows(0)) == sorted(rows(1))
    assert rows(0) == [row.tobytes() for row in traces.batches(recording, 16)(0)["ids"].numpy()]


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [cut, flip])
def test_a_damaged_shard_is_named(recording, harm):
    harm(recording / "00001.safetensors")
    with pytest.raises(UserError, match="00001.safetensors is damaged"):
        traces.batches(recording, 4)


def test_a_lost_shard_is_named(recording):
    (recording / "00000.safetensors").unlink()
    with pytest.raises(UserError, match="00000.safetensors is missing"):
        traces.batches(recording, 4)


def test_another_code_is_refused(recording):
    said = traces.about(recording)
    said["codec"]["name"] = "float16"
    (recording / "about.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="coded as 'float16'; this version reads"):
        traces.batches(recording, 4)


@pytest.mark.parametrize("name", MADE_OF)
def test_a_recording_of_anything_else_is_refused(recording, name):
    traces.require(recording, **MADE_OF)
    with pytest.raises(UserError, match=f"recorded with {name} {MADE_OF[name][:12]}; that of this variant is dddddddd"):
        traces.require(recording, **MADE_OF | {name: "d" * 64})


def test_solutions_are_text_and_so_of_no_tokenizer(recording, tmp_path):
    """What is checked against a student is only what holds token numbers."""
    files.write_json(tmp_path / "about.json", MADE_OF)
    assert not traces.distributions(tmp_path) and traces.distributions(recording)


def test_divergence_is_torchs_over_both_sides_written_out():
    torch.manual_seed(0)
    p = (2 * torch.randn(2, 3, 20)).log_softmax(-1)
    index = p.topk(4).indices
    q_top = p.gather(-1, index) + torch.randn(2, 3, 4) * 0.1 - 0.3
    q = torch.empty(2, 3, 20)
    for b in range(2):
        for t in range(3):
            rest = 1 - q_top[b, t].exp().sum()
            q[b, t] = (rest / 16).log()
            q[b, t, index[b, t]] = q_top[b, t]
    full = F.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean()
    bucket = [torch.cat([each.gather(-1, index).exp(), 1 - each.gather(-1, index).exp().sum(-1, keepdim=True)], -1) for
              each in (p, q)]  # fmt: skip
    code = (bucket[0] * (bucket[0] / bucket[1]).log()).sum(-1).mean()
    torch.testing.assert_close(
        traces.divergence(p, index, q_top), torch.stack([full, code]).double(), atol=1e-6, rtol=1e-5
    )
