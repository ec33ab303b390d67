"""`make chat` as a user has it: lines in, a stream of text out, Ctrl-D ends."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from apps import chat
from stages.export import gguf
from stages.lib.frame.errors import UserError
from stages.lib.runtimes.open import open_runtime
from stages.lib.store import dense, models


@pytest.fixture(scope="module")
def folder(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    technique = gguf.GGUF(method="gguf", type="F16", model="align/dpo", tokens="tokenize/bpe")
    technique.write(dense.load(model_folder), models.load_tokenizer(model_folder), folder, torch.empty(0, 0))
    return folder


def talk(model, lines):
    command = [sys.executable, "-m", "apps.chat", "--model", str(model), "--max-tokens", "8"]
    return subprocess.run(command, input=lines, capture_output=True, text=True, timeout=60)


def test_answers_every_line_and_ends(folder):
    done = talk(folder / "model.gguf", "one\n\ntwo\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) > 2


@pytest.mark.parametrize("name", ["none.gguf", "tokenizer.json"])
def test_no_model_is_one_line(folder, name):
    done = talk(folder / name, "one\n")
    assert done.returncode == 1 and name in done.stderr and done.stderr.count("\n") == 1


def test_without_a_name_it_is_the_model_that_ships(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gate = "gates: {model: export/q8, teacher: t, student: s, accuracy_kept: 0.7, kl: 0.1, bytes: 9}"
    Path("params.yaml").write_text(f"export: {{q8: {{}}}}\neval: {{models: {{t: export/q8, s: export/q8}}}}\n{gate}\n")
    assert chat.shipped() == Path("artifacts/export/q8/model/model.gguf")
    Path("params.yaml").write_text("export: {}\n")
    with pytest.raises(UserError, match="no gates that say which model ships"):
        chat.shipped()


def test_says_what_the_model_says(folder, capsys):
    """The answer to two turns is the greedy continuation of the chat template, turn by turn."""
    runtime, server = open_runtime(folder), chat.serve(folder / "model.gguf")
    messages = [{"role": "user", "content": "one"}]
    for question in ("two", "three"):
        ids = runtime.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        expected = runtime.tokenizer.decode(runtime.generate([ids], 8, [runtime.tokenizer.eos_token_id])[0])
        said = chat.answer(server, messages, temperature=0, max_tokens=8)
        assert (said, capsys.readouterr().out) == (expected, said + "\n")
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": question}]


def test_a_talk_that_outgrows_the_context_forgets_its_start(folder):
    server = chat.serve(folder / "model.gguf")
    messages = [{"role": role, "content": "whale " * 25} for role in ("user", "assistant") * 5]
    messages.append({"role": "user", "content": "last"})
    chat.answer(server, messages, temperature=0, max_tokens=2)
    assert 1 <= len(messages) < 11 and messages[-1]["content"] == "last" and messages[0]["role"] == "user"
