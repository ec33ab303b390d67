"""Trace artefacts: `train.jsonl` of solutions, or shards of recorded distributions; `about.json` says whose.

A shard holds R rows of T positions: ids (R, T), and for each position `code` (R, T, W), W bytes for the k likeliest
next tokens and their log-probabilities at the recording's temperature (stages/lib/store/topk.py). `about.json` names
the code and the sha256 of every shard, so that a recording that is damaged or not all there is refused before it is
learnt from.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.store import records, topk
from stages.lib.store.records import Record

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

REPLAYED = 32  # rows on which a recording is compared with its teacher


@dataclass(frozen=True)
class Shard:
    """What a teacher says of R rows: at each of T positions the K likeliest next tokens, the likeliest first."""

    ids: "Tensor"  # (R, T)
    index: "Tensor"  # (R, T, K), token numbers
    logprob: "Tensor"  # (R, T, K), over the whole vocabulary
    vocab: int


def save(folder: Path, about: dict[str, Any], items: Iterator[Record | Shard]) -> dict[str, float]:
    """Write items as they come; returns counts, and the bytes of the items alone."""
    solutions: list[Record] = []
    shards: dict[str, str] = {}
    codec: dict[str, Any] = {}
    rows = tokens = 0
    for number, item in enumerate(items):
        if not isinstance(item, Shard):
            solutions.append(item)
            continue
        path = folder / f"{number:05}.safetensors"
        codec = {"name": topk.NAME, "k": item.index.shape[-1], "vocab": item.vocab}
        write(path, item)
        shards[path.name] = files.digest(path)
        rows, tokens = rows + len(item.ids), tokens + item.ids.numel()
    if codec:
        about = about | {"codec": codec, "shards": shards, "rows": rows}
        metrics: dict[str, float] = {"rows": rows, "tokens": tokens, "bytes_per_token": files.size(folder) / tokens}
    else:
        records.save(folder, train=solutions)
        metrics = {"solutions": len(solutions), "bytes": files.size(folder)}
    files.write_json(folder / "about.json", about)
    return metrics


def write(path: Path, shard: Shard) -> None:
    import torch
    from safetensors.torch import save_file

    index_NK, logprob_NK = shard.index.flatten(0, 1).numpy(), shard.logprob.flatten(0, 1).numpy()
    code = torch.from_numpy(topk.encode(index_NK, logprob_NK, shard.vocab)).unflatten(0, shard.ids.shape)
    small = torch.uint16 if shard.vocab <= 2**16 else torch.int32
    save_file({"ids": shard.ids.to(small).contiguous(), "code": code.contiguous()}, path)


def about(folder: Path) -> dict[str, Any]:
    """{"technique": its params, "teacher": hash of the model, if it is one of ours}; of distributions also the hashes
    "tokenizer" and "tokens", "codec", "shards": their sha256, "rows"."""
    return files.read_json(folder / "about.json")


def distributions(folder: Path) -> bool:
    """Whether it holds recorded distributions, and so one tokenizer's numbers, not text."""
    return (folder / "about.json").is_file() and "codec" in about(folder)


def require(folder: Path, **identity: str) -> None:
    """Refuse recorded distributions of another tokenizer, teacher or rows than the named ones."""
    recorded = about(folder)
    for name, wanted in identity.items():
        if recorded[name] != wanted:
            raise UserError(
                f"{folder} was recorded with {name} {str(recorded[name])[:12]}; that of this variant is "
                f"{wanted[:12]}: name the same one, or record again"
            )


def batches(folder: Path, size: int, seed: int = 0) -> "Callable[[int], dict[str, Tensor]]":
    """Batch number i, round and round the recorded rows, read from memory-mapped shards: ids, index, logprob.

    Seed 0 leaves the rows in the order in which they were recorded; any other shuffles them.
    """
    import numpy as np
    from safetensors import safe_open

    codec = checked(folder)
    shards = [safe_open(path, framework="pt") for path in sorted(folder.glob("*.safetensors"))]
    lengths = [shard.get_slice("ids").get_shape()[0] for shard in shards]
    rows = [(shard, row) for shard, length in zip(shards, lengths, strict=True) for row in range(length)]
    if seed:
        rows = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    return partial(_batch, rows, codec, size)


def checked(folder: Path) -> dict[str, Any]:
    """The codec of a recording of which every byte is as it was written."""
    if not distributions(folder):
        raise UserError(f"{folder} has no recorded distributions; this technique learns from `method: logits` traces")
    recorded = about(folder)
    if (name := recorded["codec"]["name"]) != topk.NAME:
        raise UserError(f"{folder} is coded as {name!r}; this version reads {topk.NAME!r}: record again")
    for name, sha256 in recorded["shards"].items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing; run its traces variant again")
        if files.digest(folder / name) != sha256:
            raise UserError(f"{folder / name} is damaged: not the bytes that were recorded; run its variant again")
    return recorded["codec"]


def _batch(rows: list[tuple[Any, int]], codec: dict[str, Any], size: int, index: int) -> "dict[str, Tensor]":
    import torch

    chosen = [rows[(index * size + i) % len(rows)] for i in range(size)]
    ids, code = (torch.stack([shard.get_slice(name)[row] for shard, row in chosen]) for name in ("ids", "code"))
    decoded = topk.decode(code.flatten(0, 1).numpy(), codec["k"], codec["vocab"])
    token, logprob = (torch.from_numpy(part).unflatten(0, ids.shape) for part in decoded)
    return {"ids": ids.long(), "index": token, "logprob": logprob}


def fidelity(folder: Path, teacher: "PreTrainedModel", temperature: float) -> dict[str, float]:
    """Read back what was written and ask the teacher again: nats/token that a reader of the recording is off.

    kl_to_full: KL(teacher || recording) over the vocabulary, what lies outside the k tokens spread evenly; kl_of_code:
    over the k tokens and one bucket for the rest, which is what the code loses and a student is trained on.
    """
    import torch

    recorded, batch = about(folder), batches(folder, 1)
    rows, vocab = min(REPLAYED, int(recorded["rows"])), recorded["codec"]["vocab"]
    total = torch.zeros(2, dtype=torch.float64)
    for number in range(rows):
        row = batch(number)
        with torch.no_grad():
            logits_BTV = teacher(input_ids=row["ids"].to(teacher.device), use_cache=False).logits[..., :vocab]
        total += divergence((logits_BTV.float() / temperature).log_softmax(-1).cpu(), row["index"], row["logprob"])
    return dict(zip(("kl_to_full", "kl_of_code"), (total / rows).tolist(), strict=True))


def divergence(p_BTV: "Tensor", index_BTK: "Tensor", q_BTK: "Tensor") -> "Tensor":
    """(over the vocabulary, over k tokens and the rest): mean KL of log-probabilities p to those of k tokens, q."""
    import torch

    def rest(logprob_BTK: "Tensor") -> "Tensor":
        return (1 - logprob_BTK.double().exp().sum(-1)).clamp_min(topk.LEAST / 10).log()

    vocab, k = p_BTV.shape[-1], index_BTK.shape[-1]
    p_BTK, rest_BT = p_BTV.gather(-1, index_BTK), rest(q_BTK)
    even_BTV = (rest_BT - math.log(vocab - k)).float()[..., None].expand(p_BTV.shape)
    full_BT = (p_BTV.exp() * (p_BTV - even_BTV.scatter(-1, index_BTK, q_BTK))).sum(-1)
    code_BT = (p_BTK.exp() * (p_BTK - q_BTK)).sum(-1) + rest(p_BTK).exp() * (rest(p_BTK) - rest_BT)
    return torch.stack([full_BT.double().mean(), code_BT.mean()])
