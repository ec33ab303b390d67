"""The shared tiny model as a user has it: a GGUF file, and one that can talk for very long."""

from pathlib import Path

import pytest
import torch

from stages.export import gguf
from stages.lib.store import dense, models


@pytest.fixture(scope="session")
def export(model_folder, tmp_path_factory):
    """export(folder=None, context=256, template=True, noise=0, classify=None): the model as model.gguf in a folder."""

    def write(
        folder: Path | None = None,
        context: int = 256,
        template: bool = True,
        noise: float = 0,
        classify: dict | None = None,
    ) -> Path:
        folder = folder or tmp_path_factory.mktemp("gguf")
        folder.mkdir(parents=True, exist_ok=True)
        model, tokenizer = dense.load(model_folder), models.load_tokenizer(model_folder)
        model.config.max_position_embeddings = context
        if classify:
            model.config.classify = classify
        tokenizer.chat_template = tokenizer.chat_template if template else None
        torch.manual_seed(0)
        for weight in model.parameters():
            weight.data += noise * torch.randn_like(weight)
        technique = gguf.GGUF(method="gguf", type="F16", model="align/dpo", tokens="tokenize/bpe")
        technique.write(model, tokenizer, folder, torch.empty(0, 0))
        return folder

    return write


@pytest.fixture(scope="session")
def folder(export):
    return export()


@pytest.fixture(scope="session")
def bare(export):
    """Without chat template."""
    return export(template=False)


@pytest.fixture(scope="session")
def endless(export):
    """Its answers take seconds: time enough to stop one."""
    return export(context=32768)
