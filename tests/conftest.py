"""Small real things that many tests need: a tokenizer, a llama of a few hundred thousand weights, rows and a folder."""

import json
import lzma
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import stages  # noqa: F401  (switches network and telemetry off before anything else is imported)

torch.set_num_threads(2)
CORPUS = Path(__file__).parents[1] / "stages" / "data" / "corpus"


def pytest_addoption(parser):
    parser.addoption("--part", default="1/1", help="of the slow tests that part, e.g. 3/4")


def pytest_collection_modifyitems(config, items):
    part, parts = map(int, config.getoption("--part").split("/"))
    slow = [item for item in items if item.get_closest_marker("slow")]
    left_out = {id(item) for number, item in enumerate(slow) if number % parts != part - 1}
    config.hook.pytest_deselected(items=[item for item in items if id(item) in left_out])
    items[:] = [item for item in items if id(item) not in left_out]


def pytest_configure(config):
    """Tests say the same on every machine: an accelerator is for `-m gpu` alone."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores Ctrl-C, in children too


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Forty chapters of Moby-Dick, cut to 2,000 characters."""
    with lzma.open(CORPUS / "moby-dick.jsonl.xz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"][:2000] for line, _ in zip(file, range(40), strict=False)]


@pytest.fixture(scope="session")
def tokenizer(texts):
    from stages.tokenize import bpe

    return bpe.BPE(method="bpe", documents="data/corpus", problems="data/problems", vocab_size=512).train(texts)


def build_llama(vocab_size: int, seed: int = 0, hidden: int = 64):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def llama():
    """llama(vocab_size, seed=0, hidden=64): a fresh two-layer model."""
    return build_llama


@pytest.fixture
def tiny(tokenizer):
    """A fresh two-layer llama, hidden size 64; weights differ enough from zero that errors show."""
    return build_llama(len(tokenizer))


@pytest.fixture
def rows(texts, tokenizer) -> torch.Tensor:
    """16 rows of 64 token ids, (16, 64) int64."""
    ids = [i for text in texts for i in tokenizer.encode(text)]
    return torch.tensor(ids[: 16 * 64]).reshape(16, 64)


@pytest.fixture(scope="session")
def model_folder(tokenizer, tmp_path_factory) -> Path:
    """A model artefact with hidden size 256, so that every GGUF type fits its rows."""
    from stages.lib.store import models

    folder = tmp_path_factory.mktemp("artefacts") / "model"
    models.save(build_llama(len(tokenizer), hidden=256), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def ternary_folder(model_folder, tokenizer, tmp_path_factory) -> Path:
    """The same model as a training with ternary weights would leave it."""
    from stages.lib.nets import rounding
    from stages.lib.store import models

    net = models.load(model_folder)
    with rounding.rounding(net, rounding.FakeQuantize(weights="ternary")):
        pass
    folder = tmp_path_factory.mktemp("artefacts") / "ternary"
    models.save(net, tokenizer, folder)
    return folder


class Replies(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps(self.server.reply(asked)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def replying():
    """A service behind a real port: `reply` is a function from the JSON of a request to that of the answer."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Replies)
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def answering(replying):
    """An OpenAI-compatible endpoint: `answer` is a function of the request, `url` where it is."""

    def reply(asked):
        said = {"choices": [{"message": {"content": replying.answer(asked)}, "finish_reason": "stop"}]}
        return said | {"usage": {"prompt_tokens": 7, "completion_tokens": 1}}

    replying.reply = reply
    return replying
