"""What happens to an export on its way: every change is named, and an attacker needs the key."""

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from apps import verify
from stages.lib.frame.errors import UserError
from stages.lib.store import manifest, signature


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "model"
    (made / "inner").mkdir(parents=True)
    (made / "model.gguf").write_bytes(b"weights" * 100)
    (made / "inner" / "tokenizer.json").write_text("{}")
    manifest.write(made)
    return made


@pytest.fixture
def keys(tmp_path):
    """keys(name, password=None): paths of a private and a public key."""

    def make(name: str, password: str | None = None) -> tuple[Path, Path]:
        key, pem = ec.generate_private_key(ec.SECP256R1()), serialization.Encoding.PEM
        locked = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
        private, public = tmp_path / f"{name}.pem", tmp_path / f"{name}.pub"
        private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, locked))
        public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
        return private, public

    return make


def tamper(folder):
    (folder / "model.gguf").write_bytes(b"Weights" + b"weights" * 99)


def truncate(folder):
    (folder / "model.gguf").write_bytes(b"weights" * 50)


def lose(folder):
    (folder / "inner" / "tokenizer.json").unlink()


def add(folder):
    (folder / "inner" / "evil.py").write_text("")


def replace_by_link(folder):
    (folder / "model.gguf").rename(folder.parent / "elsewhere")
    (folder / "model.gguf").symlink_to(folder.parent / "elsewhere")


CHANGES = [
    (tamper, "model.gguf was tampered with"),
    (truncate, "model.gguf is truncated: 350 bytes of 700"),
    (lose, "inner/tokenizer.json is missing"),
    (add, "inner/evil.py is extra"),
    (replace_by_link, "model.gguf is a link"),
]


def test_sha256sum_agrees(folder):
    listed = manifest.read(folder)
    assert sorted(listed) == ["inner/tokenizer.json", "model.gguf"]
    for name, about in listed.items():
        said = subprocess.run(["sha256sum", folder / name], capture_output=True, text=True, check=True).stdout
        assert about == {"bytes": (folder / name).stat().st_size, "sha256": said.split()[0]}


def test_the_same_files_make_the_same_manifest(folder):
    before = (folder / "MANIFEST.json").read_bytes()
    manifest.write(folder)
    assert (folder / "MANIFEST.json").read_bytes() == before


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_change_is_named(folder, change, message):
    assert manifest.problems(folder) == []
    change(folder)
    [problem] = manifest.problems(folder)
    assert problem.startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"fi', "damaged"),
        ("[]", "lists no files"),
        (None, "missing"),
        ('{"files": {"a": {"bytes": 1}}}', "a needs bytes and sha256"),
    ],
)
def test_a_damaged_manifest_is_named(folder, text, message):
    (folder / "MANIFEST.json").unlink() if text is None else (folder / "MANIFEST.json").write_text(text)
    with pytest.raises(UserError, match=message):
        manifest.problems(folder)


def test_the_command_says_so(folder):
    def verify() -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "apps.verify", folder], capture_output=True, text=True)

    assert (verify().returncode, "2 files as exported; signature not checked" in verify().stdout) == (0, True)
    truncate(folder)
    add(folder)
    done = verify()
    assert done.returncode == 1
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == [
        "inner/evil.py is extra",
        "model.gguf is truncated",
    ]


@pytest.mark.parametrize(("change", "_message"), CHANGES)
def test_a_rewritten_manifest_does_not_help_an_attacker(folder, keys, change, _message, capsys):
    private, public = keys("mine")
    signature.sign(folder, private)
    verify.main(folder, public_key=public)
    assert "signed by the owner" in capsys.readouterr().out
    change(folder)
    manifest.write(folder)
    with pytest.raises(UserError, match="model.sig does not vouch for this folder"):
        verify.main(folder, public_key=public)


def test_another_key_does_not_vouch(folder, keys):
    signature.sign(folder, keys("mine")[0])
    [problem] = signature.problems(folder, keys("other")[1])
    assert "does not vouch" in problem


def test_an_unsigned_folder_is_named(folder, keys):
    with pytest.raises(UserError, match="model.sig is missing"):
        verify.main(folder, public_key=keys("mine")[1])


def test_openssf_command_agrees(folder, keys):
    private, public = keys("mine")
    signature.sign(folder, private)

    def verify() -> int:
        command = [sys.executable, "-m", "model_signing", "verify", "key", folder, "--public_key", public]
        return subprocess.run([*command, "--signature", folder / "model.sig"], capture_output=True).returncode

    assert verify() == 0
    tamper(folder)
    assert verify() != 0


def test_the_environment_names_the_key(folder, keys, monkeypatch):
    monkeypatch.delenv(signature.KEY, raising=False)
    assert signature.configured() is None
    private, public = keys("locked", "correct horse")
    monkeypatch.setenv(signature.KEY, str(private))
    assert signature.configured() == private
    with pytest.raises(UserError, match="can't sign"):
        signature.sign(folder, private)
    monkeypatch.setenv(signature.PASSWORD, "correct horse")
    signature.sign(folder, private)
    assert signature.problems(folder, public) == []
    monkeypatch.setenv(signature.KEY, "nowhere.pem")
    with pytest.raises(UserError, match="nowhere.pem, which is no file"):
        signature.configured()
