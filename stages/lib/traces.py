"""Trace artefacts: `train.jsonl` of verified solutions, or shards of recorded distributions; `about.json` says whose.

A shard holds R rows of T positions: ids (R, T), and for each position the k likeliest next tokens, `index` (R, T, k)
uint16 or int32, with their log-probabilities at the recording's temperature, `logprob` (R, T, k) float16.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.lib import artefacts, records

if TYPE_CHECKING:
    from torch import Tensor

Item = dict[str, Any]


def save(folder: Path, about: dict[str, Any], items: Iterator[Item]) -> dict[str, float]:
    """Write items as they come; returns counts and sizes."""
    solutions, counts = [], {"rows": 0, "tokens": 0}
    for number, item in enumerate(items):
        if "prompt" in item:
            solutions.append(item)
        else:
            shard(folder / f"{number:05}.safetensors", item)
            counts["rows"] += len(item["ids"])
            counts["tokens"] += item["ids"].numel()
    artefacts.write_json(folder / "about.json", about)
    if counts["rows"]:
        return counts | {"bytes_per_token": artefacts.size(folder) / counts["tokens"]}
    records.save(folder, train=solutions)
    return {"solutions": len(solutions), "bytes": artefacts.size(folder)}


def shard(path: Path, tensors: Item) -> None:
    from safetensors.torch import save_file

    save_file({name: value.contiguous() for name, value in tensors.items()}, path)


def about(folder: Path) -> dict[str, Any]:
    """{"technique": its params, "teacher", "tokenizer", "tokens"}: hashes of what the recording was made from."""
    return artefacts.read_json(folder / "about.json")


def require_tokenizer(folder: Path, tokenizer: str) -> None:
    """Refuse a recording that was made with another tokenizer, before training on its token numbers."""
    if (said := about(folder)["tokenizer"]) != tokenizer:
        raise SystemExit(f"{folder} was recorded with tokenizer {said[:12]}; the model's is {tokenizer[:12]}")


def distributions(folder: Path) -> bool:
    """Whether it holds recorded distributions, and so one tokenizer's numbers, not text."""
    return any(folder.glob("*.safetensors"))


def shards(folder: Path) -> list[Any]:
    """Its memory-mapped shards in the order they were recorded in."""
    from safetensors import safe_open

    if not distributions(folder):
        raise SystemExit(f"{folder} has no recorded distributions; this technique learns from `method: logits` traces")
    return [safe_open(path, framework="pt") for path in sorted(folder.glob("*.safetensors"))]


def batches(folder: Path, size: int) -> "Callable[[int], dict[str, Tensor]]":
    """Batch number i, round and round the recorded rows, read from memory-mapped shards."""
    where = [(shard, row) for shard in shards(folder) for row in range(shard.get_slice("ids").get_shape()[0])]
    return partial(_batch, where, size)


def _batch(where: list[tuple[Any, int]], size: int, index: int) -> "dict[str, Tensor]":
    import torch

    rows = [where[(index * size + i) % len(where)] for i in range(size)]
    columns = {
        name: torch.stack([shard.get_slice(name)[row] for shard, row in rows]) for name in ("ids", "index", "logprob")
    }
    return columns | {"ids": columns["ids"].long(), "index": columns["index"].long()}
