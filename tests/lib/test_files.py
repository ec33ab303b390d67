"""Identity and atomicity of artefacts, against hashlib and a failing writer."""

import hashlib
import shutil
from collections import namedtuple

import pytest
import torch
from safetensors.torch import save_file

from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.store import models, records, tokens


def test_digest_of_a_file_is_sha256_and_of_a_folder_names_and_contents(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_bytes(b"1")
    assert files.digest(tmp_path / "a" / "one") == hashlib.sha256(b"1").hexdigest()
    before = files.digest(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert files.digest(tmp_path / "b") == before  # where it lies and when it was written do not matter
    (tmp_path / "a" / "one").rename(tmp_path / "a" / "two")
    assert files.digest(tmp_path / "a") != before
    with pytest.raises(UserError, match="nothing is missing"):
        files.digest(tmp_path / "nothing")


def test_a_digest_covers_every_file(tmp_path):
    """What others could have put there too: compiled code, hidden files, folders behind links, which may run round."""
    (tmp_path / "elsewhere").mkdir()
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "linked").symlink_to(elsewhere)
    (folder / "again").symlink_to(folder)
    known = [files.digest(folder)]
    for file in (folder / "__pycache__" / "x.pyc", folder / ".hidden", elsewhere / "weights"):
        for content in (b"1", b"2"):
            file.write_bytes(content)
            known.append(files.digest(folder))
    assert len(set(known)) == len(known)


@pytest.mark.parametrize("name", ["folder", "file.json"])
def test_a_failed_write_leaves_what_was_there(tmp_path, name):
    target = tmp_path / name
    with files.writing(target) as path:
        (path / "x" if path.is_dir() else path).write_text("old")
    before = files.digest(target)
    with pytest.raises(KeyboardInterrupt), files.writing(target) as path:
        (path / "x" if path.is_dir() else path).write_text("half")
        raise KeyboardInterrupt
    assert files.digest(target) == before and [p.name for p in tmp_path.iterdir()] == [name]


def test_a_full_disk_is_told_before_work(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**9, 10**9 - 5_000_000, 5_000_000))
    files.require_space(tmp_path / "not" / "there", 4_000_000)
    with pytest.raises(UserError, match="has 5 MB free, this stage needs about 80 MB"):
        files.require_space(tmp_path / "not" / "there", 80_000_000)


def test_damaged_artefacts_are_named(tmp_path, model_folder, rows):
    (tmp_path / "train.jsonl").write_text('{"a": 1}\n{"a"')
    with pytest.raises(UserError, match=r"train.jsonl, line 2, is damaged"):
        records.load(tmp_path, "train")
    tokens.save(tmp_path / "tokens", {}, train=rows.numpy().astype("uint16"))
    file = tmp_path / "tokens" / "train.npy"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UserError, match=r"train.npy is damaged .*; run the stage that made it again"):
        tokens.load(tmp_path / "tokens", "train")
    shutil.copytree(model_folder, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match="model is damaged"):
        models.load(tmp_path / "model")


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "metrics.json").write_text('{"a": ')
    with pytest.raises(UserError, match="metrics.json is damaged .*; run the stage that made it again"):
        files.read_json(tmp_path / "metrics.json")
    with pytest.raises(UserError, match="nothing.json is missing"):
        files.read_json(tmp_path / "nothing.json")


def test_rows_of_another_tokenizer_are_refused(tmp_path, model_folder, rows):
    tokens.save(tmp_path / "tokens", {"tokenizer": "a" * 64}, train=rows.numpy().astype("uint16"))
    with pytest.raises(UserError, match="the vocabularies differ: .* has tokenizer aaaaaaaaaaaa"):
        tokens.require_tokenizer(tmp_path / "tokens", model_folder)


def test_weights_are_as_readable_as_other_files(tmp_path):
    """safetensors writes them for their owner alone, so that a server of another user could not open a release."""
    with files.writing(tmp_path / "model") as folder:
        save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
        assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o600, "then this is of no use any more"
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]
