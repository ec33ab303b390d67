"""Token artefacts: `train.npy` and `held_out.npy`, memory-mapped rows of `context` token ids; `tokens.json` says whose,
and `tokenizer.json` what they mean.

Rows are cut from a stream of `<|bos|>document` and chat-formatted problems, so they need no padding. A model whose
vocabulary is a part of theirs (prune/vocabulary) reads the same text in its own tokens: each row is translated when it
is looked at. A token that the model has lost becomes the tokens that write it, and what no longer fits into the context
is cut off at the row's end.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.lib.frame import files
from stages.lib.frame.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer
    from torch import Tensor

PIPELINE = ("normalizer", "pre_tokenizer", "decoder")  # what a part of a vocabulary has in common with the whole


def dtype(vocab_size: int) -> "np.dtype":
    """The smallest numbers that every token fits into."""
    import numpy as np

    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def pack(sequences: Iterable[list[int]], context: int, vocab_size: int) -> "np.ndarray":
    """(N, context) token ids: the sequences end to end, the rest that fills no row dropped."""
    import numpy as np

    stream = np.fromiter((i for ids in sequences for i in ids), dtype(vocab_size))
    return stream[: len(stream) // context * context].reshape(-1, context)


def save(folder: Path, about: dict[str, Any], tokenizer: Path | None = None, **splits: "np.ndarray | Path") -> None:
    """`tokenizer` is the tokenizer.json of the rows; without it only models with that very tokenizer can read them.
    Rows may lie in a .npy file, which is moved."""
    import numpy as np

    with files.writing(folder) as temporary:
        if tokenizer:
            shutil.copyfile(tokenizer, temporary / "tokenizer.json")
        for name, rows in splits.items():
            if isinstance(rows, Path):
                shutil.move(rows, temporary / f"{name}.npy")
            else:
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


def load_for(model: Path, folder: Path, split: str) -> "np.ndarray | Translated":
    """As `load`, in the numbers of the model's tokenizer; refuses rows that it can't read."""
    from tokenizers import Tokenizer

    rows, whole, own = load(folder, split), folder / "tokenizer.json", model / "tokenizer.json"
    if about(folder)["tokenizer"] == files.digest(own):
        return rows
    if whole.is_file() and (found := pieces(Tokenizer.from_file(str(whole)), Tokenizer.from_file(str(own)))):
        return Translated(rows, found)
    require_tokenizer(folder, model)
    return rows


def sample(folder: Path, rows: int, seed: int, model: Path) -> "Tensor":
    """(rows, context) int64 in the model's numbers, drawn from the training rows; for calibration."""
    import numpy as np

    train = load_for(model, folder, "train")
    chosen = np.random.default_rng(seed).choice(len(train), size=min(rows, len(train)), replace=False)
    return batch(train, chosen)


def held_out(folder: Path, rows: int, model: Path) -> "Tensor":
    """(at most rows, context) int64 in the model's numbers: the first held-out rows."""
    split = load_for(model, folder, "held_out")
    return batch(split, range(min(rows, len(split))))


def batch(split: "np.ndarray | Translated", indices: Any) -> "Tensor":
    import torch

    return torch.from_numpy(split[list(indices)].astype("int64"))


def require_tokenizer(folder: Path, model: Path) -> None:
    """Refuse rows of another tokenizer than the model's before they are learnt from or measured on."""
    rows, own = about(folder)["tokenizer"], files.digest(model / "tokenizer.json")
    if rows != own:
        raise UserError(f"the vocabularies differ: {folder} has tokenizer {rows[:12]}, {model} has {own[:12]}")


def pieces(whole: "Tokenizer", part: "Tokenizer") -> list[list[int]]:
    """For every token of `whole` those of `part` that write it; none at all where `part` is not a part of it."""
    one, other = (json.loads(tokenizer.to_str()) for tokenizer in (whole, part))
    old, new, model = whole.get_vocab(), part.get_vocab(), part.model
    if not new.keys() <= old.keys() or any(one[step] != other[step] for step in PIPELINE):
        return []
    added = {token.content for token in whole.get_added_tokens_decoder().values()}
    found: list[list[int]] = [[] for _ in range(max(old.values()) + 1)]
    for token, number in old.items():
        if token in new:
            found[number] = [new[token]]
            continue
        if token in added:  # a text; all others are what the pipeline has made of one
            found[number] = part.encode(token, add_special_tokens=False).ids
        else:
            found[number] = [piece.id for piece in model.tokenize(token)]
        if part.decode(found[number], skip_special_tokens=False) != whole.decode([number], skip_special_tokens=False):
            return []
    return found


class Translated:
    """Rows of one vocabulary in the tokens of another one, translated when they are looked at."""

    def __init__(self, rows: "np.ndarray", pieces: list[list[int]]):
        self.rows, self.pieces, self.shape = rows, pieces, rows.shape

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: list[int]) -> "np.ndarray":
        import numpy as np

        texts = (chain.from_iterable(self.pieces[token] for token in row) for row in self.rows[chosen])
        return np.array([list(islice(text, self.shape[1])) for text in texts])


def batches(split: "np.ndarray | Translated", size: int, seed: int = 0) -> "Callable[[int], Tensor]":
    """Batch number i of `size` rows, round and round; (size, context) int64.

    Seed 0 leaves the rows in the order of the artefact; any other shuffles them.
    """
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(split)) if seed else np.arange(len(split))
    return lambda index: batch(split, order[np.arange(index * size, (index + 1) * size) % len(split)])
