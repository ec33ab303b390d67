"""One export per GGUF type of the shared model, written once a session."""

from pathlib import Path

import pytest

from stages.export import _dense, gguf
from stages.lib import models

PARENTS = {"model": "align/dpo", "tokens": "tokenize/bpe"}


@pytest.fixture(scope="session")
def export_gguf(model_folder, tmp_path_factory):
    written: dict[str, Path] = {}

    def export(type: str) -> Path:
        if type not in written:
            written[type] = tmp_path_factory.mktemp(type)
            p = gguf.Params(method="gguf", type=type, **PARENTS)
            gguf.write(_dense.load(model_folder), models.load_tokenizer(model_folder), written[type], p)
        return written[type]

    return export
