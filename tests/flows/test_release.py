"""A released model: the export's files, what was measured, and nothing that can be changed unseen."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from flows import release
from stages.lib.frame import files, gates, params
from stages.lib.frame.errors import UserError
from stages.lib.store import manifest, signature

PARAMS = """
eval:
  models: {small: export/gguf, source: align/sft}
  accuracy: {records: data/a}
  speed: {records: data/a}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(signature.KEY, raising=False)
    Path("params.yaml").write_text(PARAMS)
    folder, cards = Path("artifacts/export/gguf/model"), Path("artifacts/report/cards")
    measured = Path("artifacts/eval/small/speed")
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_bytes(b"weights")
    manifest.write(folder)
    cards.mkdir(parents=True)
    (cards / "gguf.md").write_text("# gguf\n")
    measured.mkdir(parents=True)
    timings = {"decode_tokens_per_second": 6372.4, "joules_per_token": 0.0061, "energy_measured": 0.0}
    (measured / "timings.json").write_text(json.dumps(timings))
    return folder


def test_the_card_says_what_was_measured(project):
    before = files.digest(project)
    target = release.release("export/gguf", params.read())
    card = (target / "README.md").read_text()
    assert card.startswith("# gguf\n\n## Measured on one machine\n")
    assert "| decode, one stream | 6,372 tokens/s |" in card
    assert "| energy | 0.0061 J/token |" in card and "estimated from the load" in card
    assert "prefill" not in card  # not measured
    assert manifest.problems(target) == [] and "README.md" in manifest.read(target)
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


def test_a_key_that_cannot_sign_is_named(project, monkeypatch):
    key = ed25519.Ed25519PrivateKey.generate()
    pem, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    Path("mine.pem").write_bytes(key.private_bytes(pem, kind, serialization.NoEncryption()))
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    Path("mine.pub").write_bytes(public)
    monkeypatch.setenv(signature.KEY, "mine.pem")
    with pytest.raises(UserError, match="mine.pem can't sign .*Ed25519Private.* of the curve P-256, P-384 or P-521"):
        release.release("export/gguf", params.read())
    (target := Path("signed")).mkdir()
    (target / "model.sig").write_text("{}")
    with pytest.raises(UserError, match="mine.pub is no public key of an elliptic curve"):
        signature.problems(target, Path("mine.pub"))


def test_a_tampered_export_is_not_released(project):
    (project / "model.gguf").write_bytes(b"wei")
    with pytest.raises(UserError, match="model.gguf is truncated: 3 bytes of 7; run dvc repro"):
        release.release("export/gguf", params.read())
    assert not Path("releases").exists()


def test_without_a_card_nothing_is_released(project):
    Path("artifacts/report/cards/gguf.md").unlink()
    with pytest.raises(UserError, match="cards/gguf.md is missing: run dvc repro report"):
        release.release("export/gguf", params.read())
    assert not Path("releases").exists()


def test_what_nobody_measured_is_not_released(project):
    with pytest.raises(UserError, match="no eval variant measures export/other"):
        release.release("export/other", params.read())
    assert gates.measured(params.read()) == {"export/gguf": "small"}
