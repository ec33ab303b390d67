"""Token artefacts: `train.npy` and `held_out.npy`, memory-mapped rows of `context` token ids; `tokens.json` says whose.

Rows are cut from a stream of `<|bos|>document` and chat-formatted problems, so they need no padding.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.lib.frame import files
from stages.lib.frame.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def pack(sequences: Iterable[list[int]], context: int, vocab_size: int) -> "np.ndarray":
    """(N, context) token ids: the sequences end to end, the rest that fills no row dropped."""
    import numpy as np

    stream = np.fromiter((i for ids in sequences for i in ids), dtype=np.uint16 if vocab_size <= 2**16 else np.uint32)
    return stream[: len(stream) // context * context].reshape(-1, context)


def save(folder: Path, about: dict[str, Any], **splits: "np.ndarray") -> None:
    import numpy as np

    with files.writing(folder) as temporary:
        for name, rows in splits.items():
            np.save(temporary / f"{name}.npy", rows)
        files.write_json(temporary / "tokens.json", about)


def load(folder: Path, split: str) -> "np.ndarray":
    """(N, context) unsigned integers, read from disk only where looked at."""
    import numpy as np

    path = folder / f"{split}.npy"
    if not path.is_file():
        raise UserError(f"{path} is missing")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); run the stage that made it again") from error


def about(folder: Path) -> dict[str, Any]:
    """{"vocab_size", "context", "tokenizer"}; tokenizer is the hash of its tokenizer.json."""
    return files.read_json(folder / "tokens.json")


def sample(folder: Path, rows: int, seed: int) -> "Tensor":
    """(rows, context) int64, drawn from the training rows; for calibration."""
    import numpy as np

    train = load(folder, "train")
    chosen = np.random.default_rng(seed).choice(len(train), size=min(rows, len(train)), replace=False)
    return batch(train, chosen)


def held_out(folder: Path, rows: int) -> "Tensor":
    """(at most rows, context) int64: the first held-out rows."""
    split = load(folder, "held_out")
    return batch(split, range(min(rows, len(split))))


def batch(split: "np.ndarray", indices: Any) -> "Tensor":
    import torch

    return torch.from_numpy(split[list(indices)].astype("int64"))


def require_tokenizer(folder: Path, model: Path) -> None:
    """Refuse rows of another tokenizer than the model's before they are learnt from or measured on."""
    rows, own = about(folder)["tokenizer"], files.digest(model / "tokenizer.json")
    if rows != own:
        raise UserError(f"the vocabularies differ: {folder} has tokenizer {rows[:12]}, {model} has {own[:12]}")


def batches(split: "np.ndarray", size: int, seed: int = 0) -> "Callable[[int], Tensor]":
    """Batch number i of `size` rows, round and round; (size, context) int64.

    Seed 0 leaves the rows in the order of the artefact; any other shuffles them.
    """
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(split)) if seed else np.arange(len(split))
    return lambda index: batch(split, order[np.arange(index * size, (index + 1) * size) % len(split)])
