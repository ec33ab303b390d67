"""A teacher with more rows of embedding than tokens, as Qwen2.5 has: the extra ones are padding and teach nothing."""

from typing import Any

import pytest
import torch

from stages.distill import Teacher, on_policy
from stages.distill.parts import soft_targets
from stages.lib.frame import files, params
from stages.lib.frame.errors import UserError
from stages.lib.nets import losses
from stages.lib.store import models, tokens, traces
from stages.lib.training import loop
from stages.pretrain import decoder, state_space
from stages.traces import logits

MORE = 640  # rows, for 512 tokens
SMALL: dict[str, dict[str, Any]] = {
    "decoder": {"hidden": 64, "layers": 1, "heads": 4, "kv_heads": 2, "ffn": 128},
    "state_space": {"hidden": 32, "layers": 1, "head_dim": 16, "state": 8, "chunk": 8},
}


@pytest.fixture
def recorded(llama, tokenizer, rows, tmp_path):
    """(teacher, folder of its recording)."""
    models.save(llama(MORE), tokenizer, tmp_path / "teacher")
    about = {"vocab_size": 512, "context": 64, "tokenizer": files.digest(tmp_path / "teacher/tokenizer.json")}
    tokens.save(tmp_path / "tokenize/tokens", about, train=rows.numpy(), held_out=rows.numpy())
    teacher = models.load(tmp_path / "teacher")
    technique = logits.Logits(method="logits", model="a/b", source="tokenize/bpe", rows=8, k=4, batch_size=4)
    made_of = {"technique": technique.model_dump(mode="json")}
    made_of |= technique.made_of(tmp_path / "teacher", tmp_path / "tokenize")
    (tmp_path / "recording").mkdir()
    traces.save(tmp_path / "recording", made_of, technique.record(teacher, tmp_path / "tokenize"))
    return teacher, technique, tmp_path / "recording"


def test_k_and_probabilities_are_of_tokens_not_of_padding(recorded, rows, tmp_path):
    teacher, technique, folder = recorded
    assert traces.about(folder)["codec"]["vocab"] == 512
    batch = traces.batches(folder, 8)(0)
    with torch.no_grad():
        by_hand = (teacher(rows[:8]).logits[..., :512] / technique.temperature).log_softmax(-1).topk(4)
    assert torch.equal(batch["index"].sort().values, by_hand.indices.sort().values)
    torch.testing.assert_close(batch["logprob"].exp().sum(-1), by_hand.values.exp().sum(-1), atol=1e-3, rtol=0)
    assert technique.measure(teacher, folder)["kl_of_code"] < 0.01
    more = technique.model_copy(update={"k": 600})
    with pytest.raises(UserError, match="k is 600, but the teacher's vocabulary has only 512 tokens"):
        next(more.record(teacher, tmp_path / "tokenize"))


@pytest.mark.parametrize("method", ["logits", "hidden", "task_specific", "on_policy"])
@pytest.mark.parametrize("rows_of", [None, MORE])
def test_a_student_of_the_same_tokenizer_learns_from_it(method, rows_of, llama, tokenizer, tmp_path):
    from stages.lib.store import records

    given = {"method": "decoder", "tokens": "tokenize/bpe", "vocab_size": rows_of, **SMALL["decoder"]}
    student = decoder.Decoder.model_validate(given).build(tokenizer)
    parents = dict.fromkeys(("model", "teacher", "traces", "tokens"), "a/b")
    given = {"method": method, **parents, "training": {"steps": 2, "batch_size": 4, "lr": 1e-2}}
    technique: Any = params.technique("distill", "student", given | ({"alpha": 0.0} if method == "logits" else {}))
    records.save(tmp_path, train=[{"id": str(n), "prompt": f"Say {n}", "solution": f"#### {n}"} for n in range(30)])
    batch, curve, teacher = technique.batches(tokenizer, tmp_path), [], Teacher(llama(MORE), tokenizer)
    if scaffold := technique.scaffold(student, teacher):
        student.scaffold = scaffold
    loop.fit(
        student, batch, lambda part: technique.loss(student, teacher, part), technique.training, curve, tmp_path / "c"
    )
    assert all(0 < point["loss"] < 100 for point in curve)


@pytest.mark.parametrize("technique", [decoder.Decoder, state_space.StateSpace])
def test_rows_are_made_as_asked_and_never_fewer_than_tokens(technique, tokenizer):
    name = technique.__module__.split(".")[-1]
    given = {"method": name, "tokens": "tokenize/bpe", **SMALL[name]}
    for asked, made in ((None, 512), (MORE, MORE)):
        model = technique.model_validate(given | {"vocab_size": asked}).build(tokenizer)
        assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == made
    with pytest.raises(UserError, match="vocab_size is 500, but the tokenizer has 512 tokens"):
        technique.model_validate(given | {"vocab_size": 500}).build(tokenizer)


def test_what_lies_beyond_the_common_rows_changes_nothing(llama, rows):
    torch.manual_seed(0)
    student_NV, teacher_NV = torch.randn(5, 7), torch.randn(5, 9)
    expected = sum(
        (p * (p / q).log()).sum() for p, q in zip(teacher_NV[:, :7].softmax(-1), student_NV.softmax(-1), strict=True)
    )
    torch.testing.assert_close(soft_targets.divergence(student_NV, teacher_NV, 1.0), expected / 5)
    torch.testing.assert_close(on_policy.divergence(student_NV, teacher_NV, 0.0), expected / 5)
    short = llama(512)
    wide = llama(MORE)
    wide.load_state_dict(
        {
            name: torch.cat([weight, torch.randn(MORE - 512, 64)]) if weight.shape[0] == 512 else weight
            for name, weight in short.state_dict().items()
        }
    )
    assert losses.acceptance(wide, short, rows) == pytest.approx(1, abs=1e-5)
