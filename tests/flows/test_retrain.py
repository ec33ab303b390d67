"""New data in, a new champion out: with the toy project, files and a web server of this machine, a real Prefect."""

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from flows import inherit, promote, sources, versions
from stages.lib.frame import files, params
from stages.lib.frame.errors import UserError


@pytest.fixture
def web(tmp_path):
    """The address of a folder, and the folder."""
    folder = tmp_path / "web"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()


def test_only_another_content_is_news(web, tmp_path):
    address, folder = web
    target = tmp_path / "data/rows.csv"
    for origin in (f"{address}/rows.csv", str(folder / "rows.csv"), f"file://{folder}/rows.csv"):
        files.remove(target)
        (folder / "rows.csv").write_text("a,b\n")
        assert sources.refresh(target, origin)
        (folder / "rows.csv").touch()
        assert not sources.refresh(target, origin)
        (folder / "rows.csv").write_text("a,c\n")
        assert sources.refresh(target, origin)
        assert target.read_text() == "a,c\n"


def test_a_folder_comes_whole_and_without_what_left_it(tmp_path):
    origin, target = tmp_path / "there", tmp_path / "here"
    (origin / "sub").mkdir(parents=True)
    (origin / "sub/a.jsonl").write_text("{}")
    (origin / "b.jsonl").write_text("{}")
    assert sources.refresh(target, str(origin))
    assert files.digest(target) == files.digest(origin)
    (origin / "b.jsonl").unlink()
    assert sources.refresh(target, str(origin))
    assert not (target / "b.jsonl").exists()
    assert not sources.refresh(target, str(origin))


def test_what_lay_there_stays_when_nothing_comes(web, tmp_path):
    address, _ = web
    target = tmp_path / "rows.csv"
    target.write_text("mine")
    for origin in (f"{address}/missing.csv", str(tmp_path / "missing"), "http://127.0.0.1:9/x", "s4://bucket/x"):
        with pytest.raises(UserError, match=f"^{origin} can't be copied to rows.csv: "):
            sources.refresh(target, origin)
        assert target.read_text() == "mine"
    assert sorted(tmp_path.iterdir()) == [target, tmp_path / "web"]


@pytest.mark.parametrize(("section", "complaint"), [
    ({"source": {}}, "params.yaml: retrain.source is not a parameter; there are: sources"),
    ({"sources": []}, r"params.yaml: retrain.sources is \[\]; it must be a mapping"),
    ({"sources": {"wrods": "x"}}, "params.yaml: retrain.sources.wrods: 'data' has no such variant; there are: words"),
    ({"sources": {"words": 3}}, "params.yaml: retrain.sources.words is 3; it must be a path or a URL"),
    ({"sources": {"words": "https://me:secret@host/x"}}, "retrain.sources.words holds a password"),
    ({"sources": {"away": "/x"}}, "data.away.source is /etc/passwd, outside the project"),
])  # fmt: skip
def test_wrong_sources_are_named(section, complaint):
    data = {"words": {"source": "raw"}} | ({"away": {"source": "/etc/passwd"}} if "away" in str(section) else {})
    with pytest.raises(UserError, match=complaint) as error:
        sources.read({"data": data, "retrain": section})
    assert "secret" not in str(error.value)


@pytest.mark.slow
def test_new_data_make_a_new_champion_and_are_described(done):
    (done.folder / "there").write_text("raw ")
    done.params("eval.accuracy.by_text", {"e": 0.5})
    done.replace("params.yaml", "gates: {", "retrain: {sources: {words: there}}\ngates: {")
    retrain = sys.executable, "-m", "flows.retrain"
    said = done.run(*retrain)
    assert "raw: nothing new in there" in said and "data@words" not in done.ran()
    [first] = versions.champions("orchard-final")

    (done.folder / "there").write_text("rawer ")
    done.params("data.words.more", 100)
    said = done.run(*retrain)
    assert "raw: new from there" in said
    assert "data words, new rows 100, rows gone 0, kind another (AUC 1.00, p 0.002)" in said
    assert "problems right where the champion has 50.0%" in said and "on new data" in said
    assert versions.champions("orchard-final")[0] == first
    assert (done.folder / "raw").read_text() == "rawer "


@pytest.mark.slow
def test_training_goes_on_from_the_champion(done, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/registry.db")
    name = "orchard-final-source"
    done.params("prune.right.model", f"champion/{name}")
    with pytest.raises(UserError, match=f"^champion/{name}: {name} has no champion yet"):
        inherit.provide(params.read())
    done.params("prune.right.model", "data/words")
    promote.offer()
    done.params("prune.right.model", f"champion/{name}")
    done.flow()
    assert Path("artifacts/prune/right/model/text").read_text() == "raw wordslr"

    done.params("prune.left.text", "L")
    done.flow()
    assert [version.sha256 for version in versions.champions(name)][1:], "there is a new champion"
    assert "prune@right" not in done.ran()[-1:]
    assert Path("artifacts/prune/right/model/text").read_text() == "raw wordslr"  # a flow keeps what it began from
    inherit.provide(params.read(), renew=True)
    done.flow()
    assert Path("artifacts/prune/right/model/text").read_text() == "raw wordsLr"
