"""A released model: the export's files, what was measured, and nothing that can be changed unseen."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from flows import release
from stages.lib.frame import files, gates, params
from stages.lib.frame.errors import UserError
from stages.lib.store import manifest, signature

PARAMS = """
eval:
  small: {model: export/gguf, documents: data/a, problems: data/a}
  source: {model: align/sft, documents: data/a, problems: data/a}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(signature.KEY, raising=False)
    Path("params.yaml").write_text(PARAMS)
    folder, measured = Path("artifacts/export/gguf/model"), Path("artifacts/eval/small")
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_bytes(b"weights")
    (folder / "README.md").write_text("# gguf\n")
    manifest.write(folder)
    measured.mkdir(parents=True)
    (measured / "metrics.json").write_text(json.dumps({"accuracy": 0.655, "bits_per_byte": 3.58, "bytes": 1570000}))
    timings = {"decode_tokens_per_second": 6372.4, "joules_per_token": 0.0061, "energy_measured": 0.0}
    (measured / "timings.json").write_text(json.dumps(timings))
    return folder


def test_the_card_says_what_was_measured(project):
    before = files.digest(project)
    target = release.release("export/gguf", params.read())
    card = (target / "README.md").read_text()
    assert card.startswith("# gguf\n\n## Measured\n")
    assert "| accuracy, held-out problems | 65.5% |" in card
    assert "| bytes of the weights file | 1,570,000 |" in card
    assert "| decode, one stream | 6,372 tokens/s |" in card
    assert "| energy | 0.0061 J/token |" in card and "estimated from the load" in card
    assert "prefill" not in card  # not measured
    assert manifest.problems(target) == []
    assert files.digest(project) == before  # DVC's output is as it was


def test_a_key_signs_it(project, monkeypatch):
    key, pem = ec.generate_private_key(ec.SECP256R1()), serialization.Encoding.PEM
    kind = serialization.PrivateFormat.PKCS8
    Path("mine.pem").write_bytes(key.private_bytes(pem, kind, serialization.NoEncryption()))
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    Path("mine.pub").write_bytes(public)
    assert not (release.release("export/gguf", params.read()) / "model.sig").exists()
    monkeypatch.setenv(signature.KEY, "mine.pem")
    target = release.release("export/gguf", params.read())
    assert signature.problems(target, Path("mine.pub")) == []
    (target / "README.md").write_text("# best model ever\n")
    assert signature.problems(target, Path("mine.pub"))


def test_a_tampered_export_is_not_released(project):
    (project / "model.gguf").write_bytes(b"wei")
    with pytest.raises(UserError, match="model.gguf is truncated: 3 bytes of 7; run dvc repro"):
        release.release("export/gguf", params.read())
    assert not Path("releases").exists()


def test_what_nobody_measured_is_not_released(project):
    with pytest.raises(UserError, match="no eval variant measures export/other"):
        release.release("export/other", params.read())
    assert gates.measured(params.read()) == {"export/gguf": "small"}
