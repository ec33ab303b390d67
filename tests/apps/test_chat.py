"""`make chat` as a user has it: lines in, a stream of text out, keys in a terminal."""

import json
import math
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from apps import chat
from apps.parts import catalog
from stages.lib.frame.errors import UserError
from stages.lib.runtimes.open import open_runtime
from stages.lib.text import chat as template

CTRL_C, CTRL_D, UP, RUBOUT = b"\x03", b"\x04", b"\x1b[A", b"\x7f"
COMMAND = [sys.executable, "-m", "apps.chat"]


def talk(model, lines):
    command = [*COMMAND, "--model", str(model), "--max-tokens", "8"]
    return subprocess.run(command, input=lines, capture_output=True, text=True, timeout=60)


class Terminal:
    """The command in a terminal of its own, typed into and read."""

    def __init__(self, state, *options):
        self.pid, self.keys = pty.fork()
        if not self.pid:
            os.environ |= {"XDG_STATE_HOME": str(state), "TERM": "xterm", "OMP_NUM_THREADS": "1"}
            os.execv(sys.executable, [*COMMAND, *options])
        self.shown = ""

    def type(self, keys):
        os.write(self.keys, keys)

    def clear(self):
        """Ctrl-C at a line, and a new prompt. CPython's readline misses one that comes while it draws a key: again."""
        self.type(CTRL_C)
        if not select.select([self.keys], [], [], 20)[0]:
            self.type(CTRL_C)
        self.wait("> ")

    def wait(self, pattern, seconds=120):
        """What is shown up to the pattern, taken away; a busy machine's first imports take more than half a minute."""
        until = time.monotonic() + seconds
        while not (found := re.search(pattern, self.shown, re.DOTALL)):
            ready, _, _ = select.select([self.keys], [], [], until - time.monotonic())
            assert ready, f"no {pattern!r} in {self.shown[-500:]!r}"
            self.shown += os.read(self.keys, 65536).decode(errors="replace")
        before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return before

    def end(self):
        """The exit code, after what was still shown."""
        try:
            while said := os.read(self.keys, 65536):
                self.shown += said.decode(errors="replace")
        except OSError:  # Linux says so of a terminal that nobody has open any more
            pass
        os.close(self.keys)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_terminal_stops_answers_edits_lines_and_ends(endless, tmp_path):
    terminal = Terminal(tmp_path, "--model", str(endless), "--max-tokens", "30000")
    terminal.wait("> ")
    terminal.type(b"helo" + RUBOUT + b"lo\n")
    terminal.wait("\n.{200}")  # the answer has begun
    terminal.type(CTRL_C)
    said = terminal.wait(r"\r\n(\x1b\[\?2004h)?> ")
    assert len(said) < 30_000  # characters: all of its 30,000 tokens are more
    assert "Traceback" not in said and "Exception" not in said
    terminal.type(b"/help\n")
    terminal.wait("/system TEXT.*Ctrl-D ends.*> ")
    terminal.type(b"/nonsense now\n")
    terminal.wait("\nthere is no /nonsense; /help says what there is\r\n.*> ")
    terminal.type(b"half a line")
    terminal.wait("half a line")
    terminal.clear()
    terminal.type(UP)
    terminal.wait("/nonsense now")
    terminal.type(UP + UP)
    terminal.wait("hello")
    terminal.clear()
    terminal.type(CTRL_D)
    assert (terminal.end(), "Traceback" in terminal.shown) == (0, False)
    again = Terminal(tmp_path, "--model", str(endless))
    again.wait("> ")
    again.type(UP + UP + UP)
    again.wait("hello")
    again.clear()
    again.type(CTRL_D)
    assert again.end() == 0


def test_a_home_that_keeps_nothing_is_no_reason_not_to_talk(folder, tmp_path):
    (tmp_path / "file").touch()
    terminal = Terminal(tmp_path / "file", "--model", str(folder))
    terminal.wait("> ")
    terminal.type(CTRL_D)
    assert (terminal.end(), "Traceback" in terminal.shown) == (0, False)


def test_answers_every_line_and_ends(folder):
    done = talk(folder / "model.gguf", "one\n\ntwo\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) > 2


@pytest.mark.parametrize("name", ["none.gguf", "tokenizer.json", "name@champion"])
def test_no_model_is_one_line(folder, name):
    done = talk(folder / name, "one\n")
    assert done.returncode == 1 and name in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("format", ["gguf", "folder"])
def test_a_model_without_a_chat_template_is_refused(bare, model_folder, tmp_path, format):
    place = bare / "model.gguf"
    if format == "folder":
        place = tmp_path
        for file in model_folder.iterdir():
            if file.name != "chat_template.jinja":
                text = file.read_bytes()
                (tmp_path / file.name).write_bytes(text if file.name != "tokenizer_config.json" else b"{}")
    with pytest.raises(UserError, match=f"{place} has no chat template"):
        chat.open_model(place)


@pytest.fixture(scope="module")
def openvino(model_folder, tmp_path_factory):
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    import torch

    from stages.export import openvino
    from stages.lib.store import dense, models

    folder = tmp_path_factory.mktemp("openvino")
    technique = openvino.OpenVINO(method="openvino", type="float16", model="align/dpo", tokens="tokenize/bpe")
    technique.write(dense.load(model_folder), models.load_tokenizer(model_folder), folder, torch.empty(0, 0))
    return folder


@pytest.fixture(params=["gguf", "transformers", pytest.param("openvino", marks=pytest.mark.slow)])
def opened(request):
    """A model in each kind of runtime, and how the tests ask the same without apps.chat."""
    name = {"gguf": "folder", "transformers": "model_folder"}.get(request.param, request.param)
    place = request.getfixturevalue(name)
    return chat.open_model(catalog.find(str(place))), open_runtime(place)


def test_says_what_the_model_says(opened):
    """The answer to two turns is the greedy continuation of the chat template, turn by turn."""
    model, runtime = opened
    conversation, pieces = chat.Conversation(model, temperature=0, max_tokens=8), []
    conversation.command("/system be nice")
    messages = [{"role": "system", "content": "be nice"}]
    for question in ("one", "two"):
        messages.append({"role": "user", "content": question})
        ids = runtime.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        expected = runtime.tokenizer.decode(runtime.generate([ids], 8, template.stops(runtime.tokenizer))[0])
        pieces.clear()
        conversation.ask(question, pieces.append)
        assert "".join(pieces) == expected
        messages.append({"role": "assistant", "content": expected})
    assert conversation.turns == messages[1:]
    conversation.command("/reset")
    assert conversation.turns == []


TASK = {"labels": ["good", "bad"], "template": "Is this good or bad? {text}"}


@pytest.mark.parametrize("format", ["gguf", "folder"])
def test_a_classifier_says_how_likely_its_labels_are(export, model_folder, tmp_path, format):
    """Trained on the first tokens of labels it never learnt where an answer ends: writing, it would repeat them."""
    folder = tmp_path / "model"
    if format == "gguf":
        export(folder, classify=TASK)
    else:
        shutil.copytree(model_folder, folder)
        config = json.loads((folder / "config.json").read_text()) | {"classify": TASK}
        (folder / "config.json").write_text(json.dumps(config))
    done = talk(folder, "a whale\n/help\n" + "whale " * 300 + "\nAhab\n")
    assert (done.returncode, done.stderr) == (0, "")
    first, help, long, last = done.stdout.splitlines()
    runtime = open_runtime(folder)
    starts = [runtime.tokenizer(label, add_special_tokens=False).input_ids[0] for label in TASK["labels"]]
    for said, text in ((first, "a whale"), (last, "Ahab")):
        asked = [{"role": "user", "content": f"Is this good or bad? {text}"}]
        ids = runtime.tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        good, bad = runtime.logits(ids)[-1, starts].astype(float)
        share = 1 / (1 + math.exp(bad - good))
        known = sorted([(share, "good"), (1 - share, "bad")], reverse=True)
        assert said == ", ".join(f"{label} {share:.0%}" for share, label in known)
    assert help == "each line is a text, and the answer one of: good, bad. Ctrl-D ends."
    assert "reads 256" in long


def test_temperature_draws(opened):
    model, _ = opened
    drawn = set()
    for _ in range(3):
        pieces = []
        model.write([{"role": "user", "content": "one"}], 1.5, 8, pieces.append)
        drawn.add("".join(pieces))
    assert len(drawn) > 1


def test_a_conversation_that_outgrows_the_context_forgets_its_start(opened):
    model, runtime = opened
    conversation = chat.Conversation(model, temperature=0, max_tokens=20)
    conversation.command("/system be nice")
    for number in range(6):
        conversation.ask(f"{number} " + "whale " * 20, lambda piece: None)
        ids = template.prompt_ids(runtime.tokenizer, conversation.system + conversation.turns[:-1])
        assert len(ids) + 20 <= model.context == 256
        assert conversation.turns[-2]["content"].startswith(str(number))
    assert conversation.turns[0]["role"] == "user" and not conversation.turns[0]["content"].startswith("0")
    assert conversation.system == [{"role": "system", "content": "be nice"}]
    before = list(conversation.turns)
    with pytest.raises(UserError, match="the context of the model has 256: say it shorter"):
        conversation.ask("whale " * 300, lambda piece: None)
    assert conversation.turns == before


def test_an_interrupted_answer_stays_as_far_as_it_came(opened):
    model, _ = opened
    conversation, heard = chat.Conversation(model, temperature=0, max_tokens=40), []

    def interrupt(piece):
        heard.append(piece)
        if len("".join(heard)) > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conversation.ask("one", interrupt)
    assert conversation.turns[1:] == [{"role": "assistant", "content": "".join(heard)}]
    conversation.ask("two", heard.append)  # the runtime is as before
    assert len(conversation.turns) == 4


def test_without_a_name_it_is_the_model_that_ships(export, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gate = "gates: {model: export/q8, teacher: t, student: s, accuracy_kept: 0.7, kl: 0.1, bytes: 9}"
    Path("params.yaml").write_text(f"export: {{q8: {{}}}}\neval: {{models: {{t: export/q8, s: export/q8}}}}\n{gate}\n")
    assert catalog.shipped() == "export/q8"
    with pytest.raises(UserError, match="export/q8 is missing"):
        catalog.find("export/q8")
    export(Path("artifacts/export/q8/model"))
    assert catalog.find("export/q8") == Path("artifacts/export/q8/model/model.gguf")
    Path("params.yaml").write_text("export: {}\n")
    with pytest.raises(UserError, match="no gates that say which model ships"):
        catalog.shipped()
