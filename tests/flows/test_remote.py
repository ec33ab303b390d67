"""Machines that share nothing but a remote: real DVC, git and Prefect, S3 as moto serves it over HTTP."""

import os
import shutil
import socket
import sys
import time
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows import promote, remote
from stages.lib.frame.errors import UserError

pytestmark = pytest.mark.slow


def pushed(project, url: str) -> None:
    """From here on with that remote, which has everything."""
    remote.main(url)
    project.commit()


def test_another_machine_restores_everything_and_runs_nothing(done, bucket, tmp_path):
    pushed(done, bucket.url)
    done.environment |= bucket.environment
    there = done.clone(tmp_path / "there")
    (there.folder / "dvc.lock").unlink()
    there.flow()
    assert there.ran() == [] and there.lock() == done.lock()
    there.params("prune.right.text", "R")
    there.flow()
    assert there.ran() == ["prune@right"]
    done.params("prune.right.text", "R")
    done.flow()  # which a flow has pushed there
    assert done.ran() == [] and done.lock() == there.lock()


def test_a_new_stage_is_three_objects_and_a_repeated_one_none(done, bucket):
    pushed(done, bucket.url)
    before = bucket.puts()
    remote.catch_up()
    assert bucket.puts() == before
    done.params("prune.right.text", "R")
    done.run("dvc", "repro", "-q", "prune@right")
    remote.catch_up()
    # Its model is a folder of one file, so two objects; its metrics, which say the length, are as before; its record.
    assert bucket.puts() == before + 3
    remote.main()
    assert bucket.puts() == before + 3


def test_the_champion_on_another_machine_with_two_commands(done, bucket, tmp_path):
    promote.offer()
    pushed(done, bucket.url)
    done.environment |= bucket.environment
    there = done.clone(tmp_path / "there")
    there.run("git", "fetch", "-q", "--tags")
    there.run(sys.executable, "-m", "flows.fetch", "orchard-final@champion", "champion")
    assert (there.folder / "champion/text").read_text() == "raw wordsle" and there.ran() == []


@pytest.mark.parametrize("verify", [True, False])
def test_what_is_damaged_in_a_bucket_is_not_used(done, bucket, verify):
    pushed(done, bucket.url)
    done.environment |= bucket.environment
    done.run("dvc", "remote", "modify", remote.NAME, "verify", str(verify).lower())
    for key in bucket.names():
        content = bucket.get(key)
        bucket.put(key, content[:-1] + bytes([content[-1] ^ 1]))
    forget()
    if verify:
        done.run("dvc", "pull", "-q", "artifacts/data/words/metrics.json", check=1)
        assert not Path("artifacts/data/words/metrics.json").exists()
    done.flow()
    assert len(done.ran()) >= 7  # one measures what another has, to the byte
    assert Path("artifacts/export/final/model/text").read_text() == "raw wordsle"


def test_what_is_damaged_in_a_folder_is_not_used(done, tmp_path):
    pushed(done, str(tmp_path / "store"))
    [good] = [
        path for path in (tmp_path / "store/files").rglob("*") if path.is_file() and path.read_text() == "raw words"
    ]
    good.chmod(0o644)
    good.write_text("raw Words")
    done.run("dvc", "remote", "modify", remote.NAME, "verify", "false")
    forget()
    with Repo() as repo:
        stage = repo.stage.load_one("dvc.yaml", "data@words")
        remote.get(repo, stage)
        assert not remote.known(repo, stage).outs_cached()


def forget() -> None:
    """Artefacts and DVC's cache."""
    shutil.rmtree(".dvc/cache")
    shutil.rmtree("artifacts/data")
    shutil.rmtree("artifacts/export")
    shutil.rmtree("artifacts/prune")
    shutil.rmtree("artifacts/eval")


def test_without_its_remote_a_flow_works_and_the_next_one_pushes(done, bucket, monkeypatch):
    pushed(done, bucket.url)
    before = len(bucket.names())
    done.params("prune.right.text", "R")
    done.environment |= bucket.environment
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done.environment["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        shown = done.flow()
    silence = f"no answer within {remote.PATIENCE} s; what this run makes is pushed by the next one"
    assert f"DVC's remote {bucket.url}: {silence}" in shown
    assert done.ran() == ["prune@right"] and len(bucket.names()) == before
    done.environment |= bucket.environment
    done.flow()
    assert done.ran() == [] and len(bucket.names()) == before + 3


def test_a_remote_that_falls_silent_is_not_asked_for_every_stage(done, bucket, monkeypatch, capsys):
    pushed(done, bucket.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    asked = []
    monkeypatch.setattr(remote, "reaching", lambda repo, real=remote.reaching: asked.append(repo) or real(repo))
    forget()
    with Repo() as repo:
        for stage in ("data@words", "export@final"):
            remote.exchange(remote.get, repo, stage)
        assert len(asked) == 1 and remote.silent(repo)
        long_ago = time.time() - remote.PAUSE
        os.utime(remote.silence(repo), (long_ago, long_ago))
        remote.exchange(remote.get, repo, "data@words")
        assert len(asked) == 2
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.environment["AWS_ENDPOINT_URL"])
    assert remote.why_down() == ""  # as every flow asks first
    with Repo() as repo:
        remote.exchange(remote.get, repo, "data@words")
        assert remote.known(repo, repo.stage.load_one("dvc.yaml", "data@words")).outs_cached()
    assert capsys.readouterr().err.count("DVC's remote") == 2


def test_a_remote_that_is_not_there_is_told_soon(done, bucket, monkeypatch):
    remote.configure(bucket.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    start = time.monotonic()
    assert remote.why_down().startswith(f"DVC's remote {bucket.url}: ")
    assert time.monotonic() - start < 2 * remote.PATIENCE


@pytest.mark.parametrize("url", ["s3://AKIA:hidden@bucket/path", "https://bucket", "gs://bucket"])
def test_what_can_not_be_a_remote_is_refused_without_its_keys(done, url):
    with pytest.raises(UserError, match="it must be s3://BUCKET/PATH or a folder") as error:
        remote.configure(url)
    assert "hidden" not in str(error.value) and "store" not in Path(".dvc/config").read_text()
