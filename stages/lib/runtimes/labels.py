"""A model that has learnt to classify, asked about texts in whatever runtime it ships for. N texts, L labels."""

import json
from collections.abc import Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np

from stages.lib.frame import files
from stages.lib.runtimes.base import Runtime
from stages.lib.text import chat, labels
from stages.lib.text.labels import Task

WEIGHTS = "model.gguf"
METADATA = 2**28  # bytes: no file says more before its weights


def of(model: Path) -> Task | None:
    """The task of a GGUF or of a folder with one, or with a config.json; none if it is no classifier."""
    file = model / WEIGHTS if model.is_dir() else model
    if file.suffix == ".gguf" and file.is_file():
        known = in_gguf(file)
    else:
        config = model / "config.json"
        known = files.read_json(config).get(labels.CONFIG) if config.is_file() else None
    return Task(**known) if known else None


def in_gguf(file: Path) -> dict[str, Any] | None:
    """What the file says under our key. To look for the key first spares most files a reading of their whole
    vocabulary, which takes gguf seconds."""
    with file.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as content:
        if content.find(labels.GGUF.encode(), 0, METADATA) < 0:
            return None
    import gguf

    field = gguf.GGUFReader(file).fields.get(labels.GGUF)
    return json.loads(field.contents()) if field else None


def probabilities(runtime: Runtime, task: Task, texts: Sequence[str]) -> np.ndarray:
    """(N, L) float64; a row adds up to 1."""
    return likely(runtime, task.labels, [task.prompt(text) for text in texts])


def likely(runtime: Runtime, names: Sequence[str], prompts: Sequence[chat.Prompt]) -> np.ndarray:
    """How likely the answer to each prompt begins as each label does, among them; (N, L)."""
    from scipy.special import softmax

    tokens_L = labels.tokens(runtime.tokenizer, names)
    rows = [runtime.logits(chat.prompt_ids(runtime.tokenizer, prompt))[-1, tokens_L] for prompt in prompts]
    return softmax(np.array(rows, dtype=np.float64), axis=1)
