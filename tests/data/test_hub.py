"""A data set of the hub: a real client against a server here that answers as the hub does."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from pydantic import ValidationError
from ruamel.yaml import YAML

from stages.data import classify, documents
from stages.lib.frame import code, files

SHA = "0123456789" * 4
ENTRY = {"method": "classify", "source": "org/set", "licence": "MIT", "hub": {"revision": SHA}}
CARD = b"""---
configs:
- config_name: default
  data_files:
  - {split: train, path: data/train*}
  - {split: whole, path: data/whole*}
---
"""


class Answers(BaseHTTPRequestHandler):
    """Of org/set at one commit: what it is, which files it has, and these."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        known, path = self.server.files, urlparse(self.path).path
        told, (tree, resolve) = "/api/datasets/org/set", (f"{kind}/{SHA}" for kind in ("tree", "resolve"))
        if path in (f"{told}/revision/{SHA}", f"{told}/revision/main"):
            about = {"id": "org/set", "sha": SHA, "cardData": {"license": "mit"}}
            return self.say(about | {"siblings": [{"rfilename": name} for name in known]})
        if path.startswith(f"{told}/{tree}"):
            folder = path.removeprefix(f"{told}/{tree}").strip("/")
            inside = [Path(name) for name in known if Path(folder) in Path(name).parents]
            folders = {str(name.parent) for name in inside} - {folder or "."}
            rows = [{"type": "directory", "path": name, "oid": "0", "size": 0} for name in folders]
            rows += [self.about(str(name)) for name in inside]
            return self.say(rows) if rows else self.say(None, 404)
        name = path.removeprefix(f"/datasets/org/set/{resolve}/")
        return self.say(known[name]) if name in known else self.say(None, 404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["paths"]
        self.say([self.about(name) for name in self.server.files if name in asked])

    def about(self, name: str) -> dict:
        content = self.server.files[name]
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def say(self, said, status: int = 200) -> None:
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", SHA)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def url():
    texts = [f"sentence number {number}" for number in range(60)]
    labels = [number % 2 for number in range(59)] + [-1]
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    packed, whole = io.BytesIO(), io.BytesIO()
    rows = Dataset.from_dict({"text": texts, "label": labels}, features=features)
    rows.to_parquet(packed)
    rows.take(59).to_parquet(whole)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.files = {"README.md": CARD, "data/train-0.parquet": packed.getvalue()}
    server.files["data/whole-0.parquet"] = whole.getvalue()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def run(url, tmp_path):
    """run(**changes): the stage in a process of its own, since the client reads the hub's address when imported."""
    code.write(tmp_path / "code")

    def stage(**changes):
        YAML().dump({"data": {}, "hub": {"mine": ENTRY | changes}}, tmp_path / "params.yaml")
        own = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(Path.cwd())}
        own["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path}/mlflow.db"
        words = ["--code", "code/data/classify.json", "--checkpoints", "checkpoints", "--out", "out"]
        command = [sys.executable, "-m", "stages.data", "mine", *words]
        return subprocess.run(command, cwd=tmp_path, env=os.environ | own, capture_output=True, text=True)

    return stage


@pytest.mark.slow
def test_its_rows_become_records_and_numbered_labels_their_names(run, tmp_path):
    done = run()
    assert done.returncode == 0, done.stderr
    rows = [
        json.loads(line) for name in ("train", "held_out") for line in (tmp_path / f"out/records/{name}.jsonl").open()
    ]
    assert len(rows) == 60 and rows[0]["labels"] == ["bad", "good"]
    for row in rows:
        number = int(row["prompt"].removeprefix("sentence number "))
        assert row.get("solution") == (None if number == 59 else ["bad", "good"][number % 2])
    assert (
        f"Source `org/set` of the Hugging Face hub (revision {SHA}, split train)"
        in (tmp_path / "out/README.md").read_text()
    )
    first = files.digest(tmp_path / "out" / "records")
    assert run().returncode == 0 and files.digest(tmp_path / "out" / "records") == first


@pytest.mark.slow
def test_init_pins_it_and_writes_a_profile(url, tmp_path, model_folder):
    shutil.copytree("infra/profiles", tmp_path / "infra/profiles")
    own = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(Path.cwd())}

    def init(*words):
        command = [sys.executable, "-m", "flows.init", *words, "--model", str(model_folder)]
        return subprocess.run(command, cwd=tmp_path, env=os.environ | own, capture_output=True, text=True)

    bare = init("org/set")
    assert bare.returncode == 1 and bare.stderr.strip().endswith(
        "org/set does not exist; if it is a data set of the Hugging Face hub, `--hub main` fetches it"
    )
    more = tmp_path / "more.csv"
    more.write_text("text\n" + "".join(f"another sentence of number {number}\n" for number in range(60)))
    done = init("org/set", "--hub", "main", "--unlabelled", "more.csv")
    assert done.returncode == 1 and "1 rows have no label" in done.stderr
    done = init("org/set", "--hub", "main", "--unlabelled", "more.csv", "--split", "whole")
    assert done.returncode == 0, done.stderr
    tree = YAML(typ="safe").load(tmp_path / "infra/profiles/set.yaml")
    mine, pinned = tree["hub"]["mine"], {"revision": SHA, "split": "whole"}
    assert (mine["source"], mine["hub"], mine["licence"], mine["method"]) == ("org/set", pinned, "mit", "classify")
    assert mine["template"] == "{text}\nbad or good?" and tree["data"]["unlabelled"]["source"] == "more.csv"
    gone = init("org/none", "--hub", "main")
    assert gone.returncode == 1 and "org/none, main, on the hub can't be opened" in gone.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hub": {"revision": SHA, "split": "dev"}}, "split 'dev' of 01234567 can't be opened: .*dev"),
        ({"hub": {"revision": "f" * 40}}, "org/set, split 'train' of ffffffff can't be opened"),
        ({"source": "org/none"}, "org/none, split 'train' of 01234567 can't be opened"),
    ],
)
def test_what_the_hub_has_not_is_one_line(run, changes, said):
    done = run(**changes)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if said.partition(" can't")[0] in line], done.stderr


def test_it_is_named_and_pinned():
    with pytest.raises(ValidationError, match="revision"):
        classify.Classify.model_validate(ENTRY | {"hub": {"revision": "main"}})
    with pytest.raises(ValidationError, match="with `hub` it must be the name of a data set: org/name"):
        documents.Documents.model_validate(ENTRY | {"method": "documents", "source": "a/b/c"})
    with pytest.raises(ValidationError, match="source is 'stages/data', which is a path here: leave out `hub`"):
        classify.Classify.model_validate(ENTRY | {"source": "stages/data"})
