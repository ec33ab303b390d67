"""Real teachers: a model that was taught one answer, as a GGUF, and behind llama.cpp's own server on 127.0.0.1."""

from functools import partial
from pathlib import Path

import pytest
import torch

from stages.data import problems as source
from stages.export import gguf
from stages.lib.nets import packed
from stages.lib.store import dense, models
from stages.lib.text import packing
from stages.lib.training import loop
from stages.lib.training.config import Training
from tests.traces._served import Teacher


@pytest.fixture(scope="session")
def asked():
    p = source.Problems(method="problems", source="x", licence="none", families={"syllogism": {}}, per_family=20)
    return list(p.records(Path("stages/data/parts/worked.py")))


@pytest.fixture(scope="session")
def taught(asked, llama, tokenizer, tmp_path_factory):
    """It ends every talk with "#### Yes"."""
    model, folder = llama(len(tokenizer)), tmp_path_factory.mktemp("taught")
    batch = packing.batches(tokenizer, [row | {"solution": "#### Yes"} for row in asked], 256, 2, seed=0)
    p = Training(steps=80, batch_size=8, lr=5e-3, precision="float32")
    loop.fit(model, batch, partial(packed.loss, model), p, [], folder / "checkpoints")
    return model


@pytest.fixture(scope="session")
def gguf_folder(taught, tokenizer, tmp_path_factory) -> Path:
    source, folder = tmp_path_factory.mktemp("source") / "model", tmp_path_factory.mktemp("gguf") / "model"
    models.save(taught, tokenizer, source)
    folder.mkdir()
    technique = gguf.GGUF(method="gguf", type="F16", model="align/dpo", tokens="tokenize/bpe")
    technique.write(dense.load(source), models.load_tokenizer(source), folder, torch.empty(0, 0))
    return folder


@pytest.fixture(scope="session")
def llama_server(gguf_folder):
    """Its OpenAI-compatible address."""
    from xllamacpp import CommonParams, Server

    settings = CommonParams()
    settings.model.path = str(gguf_folder / "model.gguf")
    settings.n_ctx, settings.n_parallel = 0, 2
    settings.port, settings.verbosity, settings.warmup = 0, -1, False
    server = Server(settings)
    yield f"{server.listening_address}/v1"
    del server


@pytest.fixture
def serve():
    servers = []

    def start(*script, **more):
        servers.append(Teacher(script, **more))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
