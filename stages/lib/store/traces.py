"""Trace artefacts: `train.jsonl` of solutions, or shards of recorded distributions; `about.json` says whose.

A shard holds R rows of T positions: ids (R, T), and for each position `code` (R, T, W), W bytes for the k likeliest
next tokens and their log-probabilities at the recording's temperature (stages/lib/store/topk.py). `about.json` names the code
and the sha256 of every shard, so that a recording that is damaged or not all there is refused before it is learnt from.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.store import records, topk

if TYPE_CHECKING:
    from torch import Tensor

Item = dict[str, Any]
REPLAYED = 32  # rows on which a recording is compared with its teacher


def save(folder: Path, about: dict[str, Any], items: Iterator[Item]) -> dict[str, float]:
    """Write items as they come; returns counts and sizes."""
    solutions, counts, shards, codec = [], {"rows": 0, "tokens": 0}, {}, None
    for number, item in enumerate(items):
        if "prompt" in item:
            solutions.append(item)
            continue
        path = folder / f"{number:05}.safetensors"
        codec = {"name": topk.NAME, "k": item["index"].shape[-1], "vocab": item["vocab"]}
        shard(path, item)
        shards[path.name] = files.digest(path)
        counts = {"rows": counts["rows"] + len(item["ids"]), "tokens": counts["tokens"] + item["ids"].numel()}
    files.write_json(
        folder / "about.json", about | ({"codec": codec, "shards": shards, "rows": counts["rows"]} if codec else {})
    )
    if codec:
        return counts | {"bytes_per_token": files.size(folder) / counts["tokens"]}
    records.save(folder, train=solutions)
    return {"solutions": len(solutions), "bytes": files.size(folder)}


def shard(path: Path, item: Item) -> None:
    import torch
    from safetensors.torch import save_file

    index, logprob = (item[name].flatten(0, 1).numpy() for name in ("index", "logprob"))
    code = torch.from_numpy(topk.encode(index, logprob, item["vocab"])).unflatten(0, item["ids"].shape)
    small = torch.uint16 if item["vocab"] <= 2**16 else torch.int32
    save_file({"ids": item["ids"].to(small).contiguous(), "code": code.contiguous()}, path)


def about(folder: Path) -> dict[str, Any]:
    """{"technique": its params, "teacher", "tokenizer", "tokens"}: hashes of what the recording was made from; of
    distributions also {"codec", "shards": their sha256, "rows"}."""
    return files.read_json(folder / "about.json")


def distributions(folder: Path) -> bool:
    """Whether it holds recorded distributions, and so one tokenizer's numbers, not text."""
    return (folder / "about.json").is_file() and "codec" in about(folder)


def require(folder: Path, **identity: str) -> None:
    """Refuse recorded distributions of another tokenizer, teacher or rows than the named ones."""
    said = about(folder)
    for name, wanted in identity.items():
        if said[name] != wanted:
            raise UserError(
                f"{folder} was recorded with {name} {str(said[name])[:12]}; that of this variant is "
                f"{wanted[:12]}: name the same one, or record again"
            )


def batches(folder: Path, size: int) -> "Callable[[int], dict[str, Tensor]]":
    """Batch number i, round and round the recorded rows, read from memory-mapped shards: ids, index, logprob."""
    from safetensors import safe_open

    codec = checked(folder)
    shards = [safe_open(path, framework="pt") for path in sorted(folder.glob("*.safetensors"))]
    lengths = [shard.get_slice("ids").get_shape()[0] for shard in shards]
    where = [(shard, row) for shard, length in zip(shards, lengths, strict=True) for row in range(length)]
    return partial(_batch, where, codec, size)


def checked(folder: Path) -> Item:
    """The codec of a recording of which every byte is as it was written."""
    if not distributions(folder):
        raise UserError(f"{folder} has no recorded distributions; this technique learns from `method: logits` traces")
    said = about(folder)
    if (name := said["codec"]["name"]) != topk.NAME:
        raise UserError(f"{folder} is coded as {name!r}; this version reads {topk.NAME!r}: record again")
    for name, sha256 in said["shards"].items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing; run its traces variant again")
        if files.digest(folder / name) != sha256:
            raise UserError(f"{folder / name} is damaged: not the bytes that were recorded; run its variant again")
    return said["codec"]


def _batch(where: list[tuple[Any, int]], codec: Item, size: int, index: int) -> "dict[str, Tensor]":
    import torch

    rows = [where[(index * size + i) % len(where)] for i in range(size)]
    ids, code = (torch.stack([shard.get_slice(name)[row] for shard, row in rows]) for name in ("ids", "code"))
    decoded = topk.decode(code.flatten(0, 1).numpy(), codec["k"], codec["vocab"])
    index_, logprob = (torch.from_numpy(each).unflatten(0, ids.shape) for each in decoded)
    return {"ids": ids.long(), "index": index_, "logprob": logprob}


def fidelity(folder: Path, teacher: Any, temperature: float) -> dict[str, float]:
    """Read back what was written and ask the teacher again: nats/token that a reader of the recording is off.

    kl_to_full: KL(teacher || recording) over the vocabulary, what lies outside the k tokens spread evenly; kl_of_code:
    over the k tokens and one bucket for the rest, which is what the code loses and a student is trained on.
    """
    import torch

    rows, batch = min(REPLAYED, int(about(folder)["rows"])), batches(folder, 1)
    total = torch.zeros(2, dtype=torch.float64)
    for read in (batch(i) for i in range(rows)):
        with torch.no_grad():
            logits_BTV = teacher(input_ids=read["ids"].to(teacher.device), use_cache=False).logits
        total += divergence((logits_BTV.float() / temperature).log_softmax(-1).cpu(), read["index"], read["logprob"])
    return dict(zip(("kl_to_full", "kl_of_code"), (total / rows).tolist(), strict=True))


def divergence(p_BTV: "Tensor", index_BTK: "Tensor", q_BTK: "Tensor") -> "Tensor":
    """(over the vocabulary, over k tokens and the rest): mean KL of log-probabilities p to those of k tokens, q."""
    import torch

    def rest(each_BTK: "Tensor") -> "Tensor":
        return (1 - each_BTK.double().exp().sum(-1)).clamp_min(topk.LEAST / 10).log()

    vocab, k = p_BTV.shape[-1], index_BTK.shape[-1]
    p_BTK, rest_BT = p_BTV.gather(-1, index_BTK), rest(q_BTK)
    even_BTV = (rest_BT - math.log(vocab - k)).float()[..., None].expand(p_BTV.shape)
    full_BT = (p_BTV.exp() * (p_BTV - even_BTV.scatter(-1, index_BTK, q_BTK))).sum(-1)
    code_BT = (p_BTK.exp() * (p_BTK - q_BTK)).sum(-1) + rest(p_BTK).exp() * (rest(p_BTK) - rest_BT)
    return torch.stack([full_BT.double().mean(), code_BT.mean()])
