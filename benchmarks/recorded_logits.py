"""Distillation from recorded logits against a live teacher: ours, and TRL's DistillationTrainer as the peer.

python -m benchmarks.recorded_logits

All three teach the same fresh student on the same rows by AdamW (fused), in bfloat16 where the CPU multiplies it:
ours from a recording of the k likeliest tokens, read from disk; ours with the teacher's forward pass in every step; TRL
with its teacher likewise (forward KL, its generation replaced by the rows, so that it isn't paid for). Making the
recording is timed apart: one pass over the rows, however many epochs or students follow. Rounds alternate; the first is
warm-up and not counted.
"""

import os
import statistics
import tempfile
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import cyclopts
import torch

from benchmarks import _loops, _result
from stages.data import documents
from stages.distill import Teacher, logits
from stages.distill.parts import soft_targets
from stages.lib.nets import losses
from stages.lib.store import tokens, traces
from stages.pretrain import decoder
from stages.tokenize import bpe
from stages.traces import logits as recorder

ROWS, CONTEXT, K, TEMPERATURE, VOCABULARY = 8, 256, 64, 2.0, 1024
TEACHER = {"hidden": 512, "layers": 8, "heads": 8, "kv_heads": 4, "ffn": 1024}
STUDENT = {"hidden": 256, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 512}
RESULT = Path("benchmarks/results/recorded_logits.json")
PARENTS = dict.fromkeys(("model", "teacher", "traces", "tokens"), "a/b")


def build(tokenizer: Any, shape: dict[str, int]) -> Any:
    p: dict[str, Any] = {"method": "decoder", "tokens": "a/b", "context": CONTEXT} | shape
    return decoder.Decoder.model_validate(p).build(tokenizer)


def data() -> tuple[Any, torch.Tensor]:
    """A tokenizer and rows of the project's own corpus."""
    given = {"method": "documents", "source": "stages/data/corpus", "licence": "public domain"}
    source = documents.Documents.model_validate(given)
    texts = [row["text"] for row in source.records(Path("stages/data/corpus"))][:60]
    own = {"method": "bpe", "documents": "a/b", "problems": "a/b", "vocab_size": VOCABULARY}
    tokenizer = bpe.BPE.model_validate(own).train(texts)
    packed = tokens.pack(map(tokenizer.encode, texts), CONTEXT, VOCABULARY)
    return tokenizer, torch.from_numpy(packed.astype("int64"))


def record(teacher: Any, rows: torch.Tensor, folder: Path) -> dict[str, float]:
    given = {"method": "logits", "rows": len(rows), "k": K, "temperature": TEMPERATURE}
    technique = recorder.Logits.model_validate(given | {name: "a/b" for name in ("model", "source")})
    source = folder.with_name("source")
    tokens.save(source / "tokens", {"vocab_size": VOCABULARY}, train=rows.numpy())
    folder.mkdir()
    start = perf_counter()
    counts = traces.save(folder, {"technique": given}, technique.record(teacher, source))
    return counts | {"seconds": perf_counter() - start}


def recorded(student: Any, teacher: Teacher, technique: logits.Logits, part: dict[str, torch.Tensor]) -> torch.Tensor:
    return technique.loss(student, teacher, part)


def live(student: Any, teacher: Any, p: logits.Logits, ids_BT: torch.Tensor) -> torch.Tensor:
    output_BTV = student(input_ids=ids_BT, use_cache=False).logits
    with torch.no_grad():
        teacher_BTV = teacher(input_ids=ids_BT, use_cache=False).logits
    soft = soft_targets.divergence(output_BTV.flatten(0, 1), teacher_BTV.flatten(0, 1), p.temperature)
    return p.mix(losses.next_token(output_BTV, ids_BT), soft)


def peer(student: Any, teacher: Any, tokenizer: Any, rows: torch.Tensor, steps: int, folder: Path) -> float:
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    class OnRows(DistillationTrainer):
        """Learns from given rows instead of what the student writes."""

        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            ids_BT = torch.tensor([row["ids"] for row in inputs])
            mask_BT = torch.ones_like(ids_BT)
            halves = {"prompt": (ids_BT[:, :1], mask_BT[:, :1]), "completion": (ids_BT[:, 1:], mask_BT[:, 1:])}
            out = {
                f"{name}_{kind}": each
                for name, both in halves.items()
                for kind, each in zip(("ids", "mask"), both, strict=True)
            }
            return out | {"num_items_in_batch": mask_BT[:, 1:].sum()}

    arguments = DistillationConfig(
        **_loops.arguments(steps, ROWS, folder),
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        beta=0.0,  # forward KL, as ours
        temperature=TEMPERATURE,
    )
    dataset = Dataset.from_list([{"prompt": "", "ids": row} for row in rows.tolist()])
    trainer = OnRows(
        model=student, teacher_model=teacher, args=arguments, train_dataset=dataset, processing_class=tokenizer
    )
    return _loops.timed(trainer)


def main(*, rounds: int = 3, steps: int = 6, out: Path = RESULT) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    tokenizer, rows = data()
    rows, teacher = rows[: steps * ROWS], build(tokenizer, TEACHER).eval()
    given = {"method": "logits", "training": {"steps": steps}, "temperature": TEMPERATURE}
    p = logits.Logits.model_validate(given | PARENTS)
    seconds: dict[str, list[float]] = {"ours": [], "live": [], "peer": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recording = record(teacher, rows, folder / "records")
        from_disk, from_rows = (
            traces.batches(folder / "records", ROWS, seed=0),
            tokens.batches(rows.numpy(), ROWS),
        )
        for _ in range(rounds + 1):
            student = build(tokenizer, STUDENT)
            loss = partial(recorded, student, Teacher(teacher, tokenizer), p)
            seconds["ours"].append(_loops.ours(student, from_disk, loss, steps, ROWS, folder))
            student = build(tokenizer, STUDENT)
            loss = partial(live, student, teacher, p)
            seconds["live"].append(_loops.ours(student, from_rows, loss, steps, ROWS, folder))
            seconds["peer"].append(peer(build(tokenizer, STUDENT), teacher, tokenizer, rows, steps, folder / "trl"))
    speed = {name: steps * ROWS * CONTEXT / statistics.median(each[1:]) for name, each in seconds.items()}
    result = {
        "ours_tokens_per_s": round(speed["ours"]),
        "ours_live_tokens_per_s": round(speed["live"]),
        "peer_tokens_per_s": round(speed["peer"]),
        "ratio": round(speed["ours"] / speed["peer"], 2),
        "ratio_to_ours_live": round(speed["ours"] / speed["live"], 2),
        "recording_tokens_per_s": round(recording["tokens"] / recording["seconds"]),
        "bytes_per_token": round(recording["bytes_per_token"], 1),
        "k": K,
        "peer": "trl.DistillationTrainer, live teacher",
        "teacher_parameters": teacher.num_parameters(),
        "student_parameters": build(tokenizer, STUDENT).num_parameters(),
        "rounds": rounds,
    }
    _result.save(out, result, "torch", "transformers", "trl")
    print("\n".join(f"{name:5} {speed[name]:8,.0f} tokens/s" for name in speed), f"\nratio {result['ratio']}")


if __name__ == "__main__":
    cyclopts.run(main)
