"""The whole stage on a small corpus: which split is which, what is counted, and what is refused."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.store import records

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(**params): the folder that the stage wrote from 400 different documents, 3 copies and 2 short ones."""
    from stages.data.__main__ import main

    monkeypatch.chdir(tmp_path)
    texts = [" ".join(f"word{n * m % 9973}" for m in range(1, 60)) for n in range(1, 401)]
    rows = [{"id": n, "text": text} for n, text in enumerate([*texts, *texts[:3], "short", "too"])]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("code.json").write_text("{}")

    def run(**given) -> Path:
        entry = {"method": "documents", "source": "mine.jsonl", "licence": "mine alone"} | given
        with Path("settings.yaml").open("w") as file:
            YAML(typ="safe").dump({"data": {"corpus": entry}}, file)
        main(
            "corpus",
            code=Path("code.json"),
            checkpoints=Path("kept"),
            out=Path("out"),
            params_file=Path("settings.yaml"),
            workers=1,
        )
        assert not list(Path("kept").iterdir())
        return Path("out")

    return run


def test_held_out_is_the_smaller_share_and_everything_is_counted(run):
    out = run(held_out=0.1)
    train, held_out = (records.load(out / "records", split) for split in ("train", "held_out"))
    assert 20 < len(held_out) < 64 and len(train) + len(held_out) == 400
    metrics = files.read_json(out / "metrics.json")
    assert metrics["records_read"] == 405 and metrics["records_too_short"] == 2 and metrics["records_duplicate"] == 3
    assert (metrics["train_records"], metrics["held_out_records"]) == (len(train), len(held_out))
    assert metrics["held_out_bytes"] == sum(len(row["text"]) for row in held_out)


def test_another_licence_is_another_card_and_the_same_records(run):
    out = run()
    before = files.digest(out / "records")
    run(licence="yours as well")
    assert "licence: yours as well" in (out / "README.md").read_text()
    assert files.digest(out / "records") == before
    assert not (out / "records/README.md").exists()


def test_what_is_wrong_is_named_in_the_file_that_says_it(run, monkeypatch):
    with pytest.raises(UserError, match="settings.yaml: data.corpus.source is 'gone.jsonl', which does not exist"):
        run(source="gone.jsonl")
    usable = "mine.jsonl has 400 usable records: 2 of 405 have fewer than 200 characters .*, 3 are duplicates"
    with pytest.raises(UserError, match=f"settings.yaml: data.corpus.min_records is 401; {usable}"):
        run(min_records=401)
    with pytest.raises(UserError, match="data.corpus.held_out is 1e-09, which gives 400 train and 0 held-out records"):
        run(held_out=1e-9)

    monkeypatch.setattr(files, "size", lambda _path: 10**18)
    with pytest.raises(UserError, match="this stage needs about 2,000,000,000,000 MB"):
        run()
    assert not Path("out/records").exists()


def test_names_of_files_are_no_names_of_metrics(run):
    """As a browser saves them; MLflow takes no such names, and one of DVC's commands none of the folder's."""
    folder = Path('it\'s; touch PWNED; my "books"')
    folder.mkdir()
    for n in range(60):
        (folder / f"alice's, & more ({n}).txt").write_text(" ".join(f"word{n * m % 997}" for m in range(1, 60)))
    out = run(source=str(folder), held_out=0.2)
    metrics = files.read_json(out / "metrics.json")
    assert metrics["records_read"] == 60 and len(metrics) < 12
    card = (out / "README.md").read_text()
    assert "alice's, & more (11)" in card and "20 more" in card and not Path("PWNED").exists()


KILLED = """
import sys
from pathlib import Path
from stages.data import __main__ as stage
from stages.data.parts import clean
if __name__ == "__main__":
    clean.SHARD = 50_000
    settings = {name: Path(sys.argv[i]) for i, name in enumerate(("code", "checkpoints", "out", "params_file"), 1)}
    stage.main("corpus", workers=int(sys.argv[5]), **settings)
"""


def test_a_killed_run_goes_on_where_it_was_and_ends_as_another(run, tmp_path):
    """SIGKILL as soon as three shards are there, then again with one process: the bytes of a run without a kill."""
    texts = [" ".join(f"word{n * m % 9973}" for m in range(1, 200)) for n in range(1, 1500)]
    rows = [{"id": n, "text": text} for n, text in enumerate([*texts, *texts[:100]])]
    Path("many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(source="many.jsonl")
    Path("out/timings.json").unlink()
    expected = files.digest(Path("out"))
    Path("killed.py").write_text(KILLED)
    files.remove(Path("out"))
    words = [sys.executable, "killed.py", "code.json", "kept", "out", "settings.yaml"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([*words, "2"], env=environment) as stage:
        while len(shards := sorted(Path("kept").glob("*/*.txt"))) < 3:
            assert stage.poll() is None
            time.sleep(0.005)
        stage.kill()
    assert not (Path("out") / "records").exists() and shards[0].is_file()
    subprocess.run([*words, "1"], check=True, env=environment)
    assert not list(Path("kept").iterdir())
    Path("out/timings.json").unlink()
    assert files.digest(Path("out")) == expected
