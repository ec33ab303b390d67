"""A teacher behind a port: a real local server that fails as it is told to, a kill halfway, rubbish, no server."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from pydantic import ValidationError

from stages.lib.frame.errors import UserError
from stages.lib.sampling.endpoint import HEADERS
from stages.lib.store import records
from stages.traces import endpoint

PARENTS = {"source": "a/b"}


def client(server, folder, **more):
    given = {"url": server.url, "count": 9, "retries": 3, "timeout": 0.3, "concurrency": 1} | more
    return endpoint.Endpoint(method="endpoint", **PARENTS, **given).open(None, folder)


def test_the_request_is_the_apis(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("ORCHARD_API_KEY", "s3cr3t-of-mine")
    server = serve()
    teacher = client(server, tmp_path, name="big", temperature=0.5, max_new_tokens=7, seed=3)
    assert teacher.reply(0, ["one"], 2) == ["about one"]
    messages = [{"role": "user", "content": "one"}]
    assert server.bodies == [{"model": "big", "messages": messages, "temperature": 0.5, "max_tokens": 7, "seed": 5}]
    assert server.headers[0]["path"] == "/v1/chat/completions"
    assert server.headers[0]["authorization"] == "Bearer s3cr3t-of-mine"
    assert "s3cr3t" not in "".join(path.read_text() for path in tmp_path.iterdir()) + repr(teacher.p)


def test_nothing_is_told_but_the_request(serve, tmp_path, monkeypatch):
    """No headers about this machine, none from variables that are meant for OpenAI, and no key where there is none."""
    monkeypatch.delenv("ORCHARD_API_KEY", raising=False)
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "s3cr3t-of-another")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Mine: s3cr3t-of-another")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    server = serve()
    assert client(server, tmp_path).reply(0, ["one"], 0) == ["about one"]
    assert set(server.headers[0]) <= HEADERS | {"path"}
    assert "s3cr3t" not in json.dumps(server.headers)


@pytest.mark.parametrize(
    "failure", [500, 503, "hang", "rubbish", "half", "null", "dripping", "dripping headers", "endless", "packed"]
)
def test_what_passes_is_tried_again(serve, tmp_path, failure):
    server = serve(failure, failure)
    assert client(server, tmp_path).reply(0, ["one"], 0) == ["about one"]
    assert len(server.bodies) == 3


def test_waits_double_and_retry_after_is_obeyed(serve, tmp_path):
    """openai's policy: half a second, doubled each time, up to a quarter less; or what the server asks for."""
    server = serve(500, 500, 429)
    client(server, tmp_path).reply(0, ["one"], 0)
    one, two, three = (later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False))
    assert 0.75 * 0.5 <= one < 0.75 <= two < 1.5 and three >= 1.0


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        *((500, "status 500"), ("rubbish", "no chat completion: .*<html>"), ("hang", "Timeout")),
        *(("dripping", "ReadTimeout"), ("dripping headers", "ReadTimeout"), ("packed", "DecodingError it is packed")),
        ("endless", "ReadError its answer is longer than 16,777,216 bytes"),
    ],
)
def test_giving_up_keeps_what_was_collected(serve, tmp_path, failure, said):
    server = serve("answer", *[failure] * 4)
    with pytest.raises(UserError, match=f"{server.url} gave no answer in 4 attempts: .*{said}.*1 answers are kept in"):
        client(server, tmp_path).reply(0, ["one", "two"], 0)
    assert client(server, tmp_path).reply(0, ["one", "two"], 0) == ["about one", "about two"]
    assert Counter(body["messages"][0]["content"] for body in server.bodies) == {"one": 1, "two": 5}


def test_no_server_is_one_line(serve, tmp_path):
    server = serve()
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="gave no answer in 4 attempts: ConnectError"):
        client(server, tmp_path).reply(0, ["one"], 0)


def test_a_refusal_is_not_repeated_and_hides_the_key(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("ORCHARD_API_KEY", "about one")  # what this server echoes
    server = serve(401)
    with pytest.raises(UserError, match="refuses: status 401.*ORCHARD_API_KEY") as error:
        client(server, tmp_path).reply(0, ["one"], 0)
    assert "about one" not in str(error.value) and len(server.bodies) == 1


def test_nothing_is_asked_twice(serve, tmp_path):
    server = serve()
    client(server, tmp_path).reply(0, ["one", "two", "one"], 0)
    assert client(server, tmp_path).reply(0, ["two", "three"], 0) == ["about two", "about three"]
    client(server, tmp_path).reply(0, ["one"], 1)  # another seed is another sample
    client(server, tmp_path, name="other").reply(0, ["one"], 0)
    assert len(server.bodies) == 5


def test_a_line_that_a_kill_cut_is_asked_again(serve, tmp_path):
    server = serve()
    client(server, tmp_path).reply(0, ["one", "two"], 0)
    (journal,) = tmp_path.iterdir()
    journal.write_bytes(journal.read_bytes()[:-20])
    assert client(server, tmp_path).reply(0, ["one", "two", "three"], 0) == ["about one", "about two", "about three"]
    assert [len(json.loads(line)) for line in journal.read_text().splitlines()] == [5, 5, 5]
    assert Counter(body["messages"][0]["content"] for body in server.bodies) == {"one": 1, "two": 2, "three": 1}


SCRIPT = """
import sys
from pathlib import Path
from stages.lib.store import records
from stages.traces import endpoint
p = endpoint.Endpoint(method="endpoint", source="a/b", url=sys.argv[1], count=9, concurrency=2)
print(p.open(None, Path(sys.argv[2])).reply(0, [f"p{i}" for i in range(12)], 0))
"""


@pytest.mark.slow
def test_a_kill_loses_and_repeats_nothing(serve, tmp_path):
    """kill -9 in the middle of twelve requests: the second run asks only for what was not answered."""
    server = serve(delay=0.15)
    command = [sys.executable, "-c", SCRIPT, server.url, str(tmp_path)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while len(server.bodies) < 6:
        assert first.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    time.sleep(0.3)
    (journal,) = tmp_path.iterdir()
    answered = len(journal.read_text().splitlines())
    asked = len(server.bodies)
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.stdout == f"{[f'about p{i}' for i in range(12)]}\n", said.stderr
    assert 0 < answered < 12 and len(server.bodies) == asked + 12 - answered


def test_concurrency_and_pace(serve, tmp_path):
    server = serve(delay=0.1)
    prompts = [f"p{i}" for i in range(6)]
    assert client(server, tmp_path / "a", concurrency=3).reply(0, prompts, 0) == [f"about p{i}" for i in range(6)]
    assert server.most == 3
    server.times.clear()
    client(server, tmp_path / "b", concurrency=6, requests_per_second=20).reply(0, prompts, 0)
    assert server.times[-1] - server.times[0] > 0.8 * 5 / 20


def test_a_cut_reply_counts_as_none_but_is_paid(serve, tmp_path):
    server = serve("cut")
    prices = {"price_per_million_input": 2.0, "price_per_million_output": 10.0}
    teacher = client(server, tmp_path, **prices)
    assert teacher.reply(0, ["four", "sixsix"], 0) == ["", "about sixsix"]
    assert teacher.spent() == {
        "requests": 2,
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "cost": pytest.approx((10 * 2 + 20 * 10) / 1e6),
    }


@pytest.mark.parametrize("url", ["ftp://x/v1", "http://me:secret@x/v1", "https://x/v1?key=1", "x"])
def test_a_url_is_checked_and_carries_no_secret(url):
    with pytest.raises(ValidationError, match="url"):
        endpoint.Endpoint(method="endpoint", count=1, url=url, **PARENTS)


def test_the_length_of_evolved_prompts_is_said_only_where_there_are_some():
    with pytest.raises(ValidationError, match="prompt_words is 9, but it counts only with evolve above 0"):
        endpoint.Endpoint(method="endpoint", count=1, prompt_words=9, **PARENTS)


def test_evolved_prompts_have_no_verifier():
    with pytest.raises(ValidationError, match="`choose` must be self_consistency or first"):
        endpoint.Endpoint(method="endpoint", count=1, evolve=1, **PARENTS)


def test_evolved_prompts_are_answered_and_say_whence(serve, tmp_path):
    """This server's rewrite of a prompt is "about ..." its instruction, which leaks: all are dropped."""
    server = serve()
    teacher = client(server, tmp_path, evolve=1, choose="first")
    (tmp_path / "records").mkdir()
    records.save(tmp_path / "records", train=[{"id": str(i), "family": "f", "prompt": f"Say {i}"} for i in range(3)])
    assert list(teacher.p.record(teacher, tmp_path)) == []
    assert len(server.bodies) == 3 and all("Say" in body["messages"][0]["content"] for body in server.bodies)
    assert re.search("Rewrite|Write", server.bodies[0]["messages"][0]["content"])
