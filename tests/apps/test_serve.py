"""`make serve` as OpenAI's own client and a browser see it."""

import json
import math
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest
from fastapi.testclient import TestClient

from apps.serve import __main__ as command
from apps.serve.models import Models
from apps.serve.routes import application
from stages.lib.frame.errors import UserError
from stages.lib.runtimes.open import open_runtime

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def checkout(export, bare, endless, tmp_path_factory):
    """A folder with exports: two models, one without chat template, one that goes on and on, one of another format."""
    place = tmp_path_factory.mktemp("checkout")
    models = place / "artifacts" / "export"
    export(models / "tiny" / "model")
    export(models / "other" / "model", noise=0.05)
    shutil.copytree(bare, models / "bare" / "model")
    shutil.copytree(endless, models / "endless" / "model")
    (models / "damaged" / "model").mkdir(parents=True)
    (models / "damaged" / "model" / "model.gguf").write_bytes(b"GGUF")
    return place


@pytest.fixture(scope="module")
def address(checkout):
    """Of the command, as it says it; Ctrl-C ends it without a word."""
    settings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "apps.serve", "--model", "export/tiny", "--port", "0"]
    server = subprocess.Popen(
        words, cwd=checkout, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert select.select([server.stdout], [], [], 60)[0]
    yield server.stdout.readline().split()[0]
    server.send_signal(signal.SIGINT)
    assert (server.wait(10), server.stdout.read(), server.stderr.read()) == (0, "", "")


@pytest.fixture
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)


def test_lists_what_is_there_the_default_first(client):
    names = [model.id for model in client.models.list()]
    assert names[0] == "export/tiny"
    assert sorted(names) == [f"export/{name}" for name in ("bare", "damaged", "endless", "other", "tiny")]


def expected(folder, messages, tokens):
    runtime = open_runtime(folder)
    ids = runtime.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return runtime.tokenizer.decode(runtime.generate([ids], tokens, [runtime.tokenizer.eos_token_id])[0])


@pytest.mark.parametrize("name", ["tiny", "other"])
def test_chats_and_streams_what_the_named_model_says(client, checkout, name):
    wanted = expected(checkout / "artifacts" / "export" / name / "model", HELLO, 12)
    request = {"model": f"export/{name}", "messages": HELLO, "temperature": 0, "max_tokens": 12}
    whole = client.chat.completions.create(**request)
    assert whole.choices[0].message.content == wanted
    chunks = list(client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == wanted
    assert len(chunks) > 4 and chunks[-1].usage.completion_tokens <= 12
    for timings in (whole.model_extra["timings"], chunks[-1].model_extra["timings"]):
        assert timings["predicted_per_second"] > 0
        assert 0 < timings["joules"] < 1000 and timings["energy_measured"] in (0, 1)


def test_names_of_other_tools_are_refused_and_none_means_the_default(client, checkout):
    wanted = expected(checkout / "artifacts" / "export" / "tiny" / "model", HELLO, 4)
    said = client.chat.completions.create(model="", messages=HELLO, temperature=0, max_tokens=4)
    assert said.choices[0].message.content == wanted
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4': GET /v1/models lists them"):
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="artifacts/export/tiny/model/model.gguf", messages=HELLO)


def test_a_model_without_a_chat_template_completes_and_does_not_chat(client):
    with pytest.raises(openai.BadRequestError, match="has no chat template, so it can complete texts, but not chat"):
        client.chat.completions.create(model="export/bare", messages=HELLO)
    done = client.completions.create(model="export/bare", prompt="The whale", max_tokens=4)
    assert done.usage.completion_tokens == 4 and done.model_extra["timings"]["joules"] > 0


def test_a_damaged_file_is_one_line_and_harms_nobody(client):
    with pytest.raises(openai.BadRequestError, match="damaged or no GGUF file"):
        client.chat.completions.create(model="export/damaged", messages=HELLO)
    assert client.chat.completions.create(model="export/tiny", messages=HELLO, max_tokens=2).choices


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_a_conversation_is_refused_by_name(client, stream):
    long = [{"role": "user", "content": "whale " * 300}]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="export/tiny", messages=long, stream=stream)
    assert refused.value.type == "exceed_context_size_error"


def test_who_goes_away_ends_the_answer(client):
    started = time.monotonic()
    with client.chat.completions.create(
        model="export/endless", messages=HELLO, max_tokens=30000, stream=True, extra_body={"ignore_eos": True}
    ) as answer:
        next(iter(answer))
    client.with_options(timeout=10).chat.completions.create(model="export/tiny", messages=HELLO, max_tokens=2)
    assert time.monotonic() - started < 10


@pytest.fixture(scope="module")
def inside(checkout):
    """The same without a port: inside(key)."""
    names = ["export/tiny"]
    models = Models([str(checkout / "artifacts" / name) for name in names])
    return lambda key=None: TestClient(
        application(models, key, ["127.0.0.1", "[::1]"]), base_url="http://127.0.0.1:8000"
    )


TASK = {"labels": ["good", "bad"], "template": "Is this good or bad? {text}"}


@pytest.fixture(scope="module")
def classifier(export):
    """It has learnt nothing, but it says that it has."""
    return export(classify=TASK)


@pytest.fixture(scope="module")
def asker(classifier, folder):
    return TestClient(application(Models([str(classifier), str(folder)]), None, ["127.0.0.1"]), "http://127.0.0.1")


def test_classifies_singly_and_in_batches(asker, classifier):
    texts = ["a whale", "the sea, the sea", "Ahab"]
    together = asker.post("/classify", json={"texts": texts}).json()
    assert together["model"] == str(classifier)
    runtime = open_runtime(classifier)
    starts = [runtime.tokenizer(label, add_special_tokens=False).input_ids[0] for label in TASK["labels"]]
    for text, result in zip(texts, together["results"], strict=True):
        asked = [{"role": "user", "content": TASK["template"].replace("{text}", text)}]
        ids = runtime.tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        good, bad = runtime.logits(ids)[-1, starts].astype(float)
        probability = 1 / (1 + math.exp(bad - good))
        assert result["probabilities"] == pytest.approx({"good": probability, "bad": 1 - probability})
        assert result["label"] == ("good" if good > bad else "bad")
        assert result["probability"] == max(result["probabilities"].values())
        assert asker.post("/classify", json={"text": text}).json() == {"model": str(classifier)} | result


def test_a_classifier_that_is_chatted_with_says_one_label_and_stops(asker, classifier):
    def said(*messages):
        body = {"model": str(classifier), "messages": messages, "max_tokens": 64, "temperature": 0}
        answer = asker.post("/v1/chat/completions", json=body).json()
        return answer["choices"][0], answer["usage"]["prompt_tokens"]

    text = {"role": "user", "content": "the sea, the sea"}
    choice, read = said(text)
    assert choice["message"]["content"].strip() in TASK["labels"] and choice["finish_reason"] == "stop"
    in_template = {"role": "user", "content": TASK["template"].replace("{text}", text["content"])}
    earlier = [{"role": "user", "content": "a whale"}, {"role": "assistant", "content": "good"}]
    assert said(in_template) == said(*earlier, text) == (choice, read)  # each text by itself, in its template once


def test_what_can_not_be_classified_is_one_line(asker, folder):
    def complaint(**body):
        refused = asker.post("/classify", json=body)
        assert refused.status_code == 400
        return refused.json()["error"]["message"]

    for nothing in ({}, {"texts": []}, {"text": " "}, {"texts": ["a", ""]}, {"texts": "a"}, {"text": 3}):
        assert complaint(**nothing).startswith('give {"text": "..."} or')
    assert "text 2 is" in (said := complaint(texts=["a", "whale " * 300])) and "reads 256" in said
    said = complaint(model=str(folder), text="a")
    assert said == f"{folder} is no classifier, it writes text: ask it at /v1/chat/completions"


BODY = {"messages": HELLO, "max_tokens": 2}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"{", "the body is no JSON"),
        (b"\xff", "the body is no JSON"),
        (b"[]", "the body must be a JSON object"),
        (b"{}", "messages must be a list"),
        (b'{"messages": []}', "messages must be a list"),
        (b'{"messages": ["hello"]}', "messages must be a list"),
        (b'{"messages": [{"role": "user", "content": " "}]}', "the last message is empty"),
        (b'{"messages": [{"role": "user", "content": "hello"}], "temperature": "hot"}', "temperature"),
    ],
)
def test_what_is_no_request_is_one_line(inside, content, complaint):
    refused = inside().post("/v1/chat/completions", content=content)
    assert refused.status_code == 400 and complaint in refused.json()["error"]["message"]


def test_what_only_json_can_spell_reaches_llama_cpp(inside):
    for content in (rb'"\ud800"', b"NaN"):
        body = b'{"max_tokens": 2, "messages": [{"role": "user", "content": ' + content + b"}]}"
        refused = inside().post("/v1/chat/completions", content=body)
        assert (refused.status_code, "parse error" in refused.json()["error"]["message"]) == (400, True)


def test_an_empty_prompt_and_an_unknown_address_are_one_line(inside):
    assert inside().post("/v1/completions", json={"prompt": ""}).json()["error"]["message"] == "prompt is empty"
    assert inside().get("/v2").json()["error"] == {"message": "Not Found", "type": "not_found_error", "code": 404}


def test_with_a_key_every_request_needs_it(inside):
    asker = inside("a secret")
    for given in (
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer a secreT"},
        {"Authorization": "a secret"},
    ):
        assert asker.get("/v1/models", headers=given).status_code == 401
        for path in ("/v1/chat/completions", "/v1/completions"):
            refused = asker.post(path, json=BODY, headers=given)
            assert refused.status_code == 401 and "key" in refused.json()["error"]["message"]
    right = {"Authorization": "Bearer a secret"}
    assert asker.get("/v1/models", headers=right).status_code == 200
    assert asker.post("/v1/chat/completions", json=BODY, headers=right).status_code == 200
    assert "a secret" not in asker.get("/").text


@pytest.mark.parametrize("path", ["/", "/v1/models", "/v1/chat/completions"])
def test_a_name_that_was_pointed_here_is_refused(inside, path):
    """DNS rebinding: the browser sends the name of the page that it believes to speak to."""
    ask = inside().post if path.endswith("completions") else inside().get
    for host, status in {
        "evil.example": 400,
        "evil.example:8000": 400,
        "127.0.0.1:8000": 200,
        "[::1]:8000": 200,
    }.items():
        content = {"json": BODY} if path.endswith("completions") else {}
        assert ask(path, headers={"Host": host}, **content).status_code == status


def test_another_site_is_refused(inside):
    for origin, status in {"http://evil.example": 403, "null": 403, "http://127.0.0.1:8000": 200}.items():
        assert inside().post("/v1/chat/completions", json=BODY, headers={"Origin": origin}).status_code == status


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org"])
def test_other_machines_only_with_a_key(host, monkeypatch):
    monkeypatch.delenv(command.KEY, raising=False)
    with pytest.raises(UserError, match=f"{host} lets other machines in: set ORCHARD_API_KEY"):
        command.run("none", host, 0)
    monkeypatch.setenv(command.KEY, "")
    with pytest.raises(UserError, match="ORCHARD_API_KEY"):
        command.run("none", host, 0)


def test_a_port_in_use_and_a_wrong_model_are_one_line(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = ["--model", str(folder), "--port", str(taken.getsockname()[1])]
        done = subprocess.run([sys.executable, "-m", "apps.serve", *words], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and "Address already in use" in done.stderr
    for port in (-1, 70000):
        with pytest.raises(UserError, match=f"port {port}"):
            command.run(str(folder), "127.0.0.1", port)
    with pytest.raises(UserError, match="none.gguf is missing"):
        command.run("none.gguf", "127.0.0.1", 0)


def test_what_is_no_gguf_is_refused(model_folder):
    with pytest.raises(UserError, match="is no GGUF file, and only those are served"):
        command.run(str(model_folder), "127.0.0.1", 0)


def test_the_page_brings_all_it_needs(inside):
    page = inside().get("/")
    assert "http://" not in page.text.replace("http://www.w3.org/2000/svg", "") and "https://" not in page.text
    assert "prefers-color-scheme: dark" in page.text
    assert "connect-src 'self'" in page.headers["content-security-policy"]


class Browser:
    """Chromium without a window, spoken to in its DevTools protocol."""

    def __init__(self, folder):
        switches = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run"]
        words = [CHROMIUM, *switches, f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = folder / "DevToolsActivePort"
        wait(lambda: port.is_file() and port.read_text().count("\n") == 1)
        self.port, self.number = port.read_text().split()[0], 0

    def open(self, url):
        import httpx2
        from websockets.sync.client import connect

        [page] = [each for each in httpx2.get(f"http://127.0.0.1:{self.port}/json").json() if each["type"] == "page"]
        self.socket = connect(page["webSocketDebuggerUrl"], max_size=None)
        self.send("Page.navigate", url=url)
        wait(lambda: self.run("document.readyState") == "complete" and self.run("location.href").startswith(url))

    def send(self, method, **params):
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while (said := json.loads(self.socket.recv(timeout=20))).get("id") != self.number:
            pass
        return said["result"]

    def run(self, script):
        return self.send("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def type(self, text):
        self.run("document.getElementById('question').focus()")
        self.send("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(10)


def wait(condition, seconds=20):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)
    return found


@pytest.fixture
def browser(tmp_path):
    if not CHROMIUM:
        pytest.skip("no Chromium here")
    browser = Browser(tmp_path)
    yield browser
    browser.close()


ANSWERS = "[...document.querySelectorAll('.assistant p')].map(each => each.textContent)"
NOTES = "[...document.querySelectorAll('.assistant small')].map(each => each.textContent)"
IDLE = "document.getElementById('send').textContent == 'Send'"


def test_one_can_chat_on_the_page(browser, address, checkout):
    browser.open(address)
    wait(lambda: browser.run("document.getElementById('model').length") == 5)
    assert browser.run("document.getElementById('model').value") == "export/tiny"
    browser.type("hello")
    [note] = wait(lambda: [note for note in browser.run(NOTES) if note])
    assert "tokens/s" in note and note.endswith(" J")
    [answer] = browser.run(ANSWERS)
    assert answer
    browser.run("document.getElementById('model').value = 'export/endless'")
    browser.type("go on")
    wait(lambda: len(browser.run(ANSWERS)) == 2 and len(browser.run(ANSWERS)[1]) > 4000)
    assert not browser.run(IDLE)
    browser.run("document.getElementById('send').click()")
    wait(lambda: browser.run(IDLE))
    assert browser.run(NOTES)[1] == "stopped" and browser.run("turns.length") == 4
    browser.run("document.getElementById('model').value = 'export/tiny'")
    browser.type("last")  # too much by now for so short a context: the oldest turns leave
    wait(lambda: len(browser.run(NOTES)) == 3 and browser.run(NOTES)[2])
    assert browser.run(NOTES)[2].endswith(" J") and browser.run("turns[0].content") == "last"
    browser.run("document.getElementById('model').value = 'export/bare'")
    browser.type("hello")
    wait(lambda: len(browser.run(NOTES)) == 4 and "has no chat template" in browser.run(NOTES)[3])
    browser.run("document.getElementById('reset').click()")
    assert browser.run("turns.length") == 0 and browser.run(ANSWERS) == []
