"""Tasks of lm-evaluation-harness: held to lm-eval's own model of transformers, on a folder and on its GGUF."""

import json
import math
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.eval import harness
from stages.eval.parts import tasks
from stages.lib.frame import params
from stages.lib.frame.errors import UserError

needs_lm_eval = pytest.mark.skipif(not find_spec("lm_eval"), reason="the extra `harness` is not installed")

CHOICE = """
task: whales
output_type: multiple_choice
dataset_path: json
dataset_kwargs: {data_files: {test: data/questions.jsonl}}
test_split: test
doc_to_text: "{{question}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: right
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
TEXT = """
task: pages
output_type: loglikelihood_rolling
dataset_path: json
dataset_kwargs: {data_files: {test: data/questions.jsonl}}
test_split: test
doc_to_text: ""
doc_to_target: "{{page}}"
metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
"""
LAST_WORD = """
task: last-word
output_type: loglikelihood
dataset_path: json
dataset_kwargs: {data_files: {test: data/questions.jsonl}}
test_split: test
doc_to_text: "{{question}} The answer is"
doc_to_target: " {{choices[0]}}"
metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}]
"""
# Stops at a letter that is in no control token's name: lm-eval's `hf` model looks for stops in those too.
WRITE = """
task: write
output_type: generate_until
dataset_path: json
dataset_kwargs: {data_files: {test: data/questions.jsonl}}
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["h", "\\n\\n"], max_gen_toks: 24}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list:
  - {name: strict-match, filter: [{function: regex, regex_pattern: "[a-z]+"}, {function: take_first}]}
"""


@pytest.fixture(scope="session")
def folder(texts, tmp_path_factory) -> Path:
    """Six questions on the texts, put in four kinds of task."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "data").mkdir()
    rows = [
        {
            "question": text[100:160],
            "choices": [text[160:164], text[300:320], text[500:530], " é"],
            "right": number % 4,
            "page": text[:400],
        }
        for number, text in enumerate(texts[:6])
    ]
    (folder / "data/questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, task in {"choice": CHOICE, "text": TEXT, "last-word": LAST_WORD, "write": WRITE}.items():
        (folder / f"{name}.yaml").write_text(task)
    return folder


@pytest.fixture(scope="session")
def gguf_folder(model_folder, tokenizer, tmp_path_factory) -> Path:
    """The same model for llama.cpp."""
    from stages.export import gguf
    from stages.lib.store import dense

    folder = tmp_path_factory.mktemp("gguf")
    technique = gguf.GGUF(method="gguf", type="F16", model="align/dpo", tokens="tokenize/bpe")
    technique.write(dense.load(model_folder), tokenizer, folder, torch.empty(0, 0))
    return folder


def measure(source, **more) -> harness.Harness:
    wanted = {"source": str(source), "context": 96} | more
    return harness.Harness.model_validate({"models": {"student": "distill/student"}, "tasks": wanted})


def runtime(folder):
    from stages.lib.runtimes.open import open_runtime

    return open_runtime(folder)


def evaluate(folder, model, **more):
    """lm-eval's results of our adapter, in a context that the texts don't fit in."""
    from stages.eval.parts import lm_eval_adapter

    defaults = {"hub": [], "limit": None, "context": 96, "chat": False}
    return lm_eval_adapter.evaluate(runtime(model), tasks.read(folder), **defaults | more)


@pytest.fixture(scope="session")
def ours(folder, model_folder):
    """By chat: the results on the folder of the model."""
    return {chat: evaluate(folder, model_folder, chat=chat) for chat in (False, True)}


def reference(folder, model_folder, chat):
    """What lm-eval says when it runs the folder of the model by itself."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    from stages.eval.parts import lm_eval_adapter
    from stages.lib.store import models

    model = HFLM(models.load(model_folder), tokenizer=models.load_tokenizer(model_folder), max_length=96)
    loaded = lm_eval_adapter.load(tasks.read(folder), [])
    return evaluator.evaluate(model, loaded, bootstrap_iters=1000, apply_chat_template=chat, fewshot_as_multiturn=chat)


def nats_per_token(results, tokenizer) -> list[float]:
    """Of every request that has a log-likelihood."""
    return [
        (answer[0] if isinstance(answer, tuple) else answer) / len(tokenizer.encode(arguments[-1]))
        for rows in results["samples"].values()
        for row in rows
        for arguments, answer in zip(row["arguments"], row["filtered_resps"], strict=True)
        if not isinstance(answer, str)
    ]


def metrics(results) -> dict[str, float]:
    return dict(pair for task, row in results["results"].items() for pair in harness.numbers(task, row))


@needs_lm_eval
@pytest.mark.parametrize("chat", [False, True])
def test_equals_lm_evals_own_model(chat, ours, folder, model_folder, tokenizer):
    theirs = reference(folder, model_folder, chat)

    found, expected = (nats_per_token(results, tokenizer) for results in (ours[chat], theirs))
    assert len(found) == 6 * (4 + 1 + 1) and found == pytest.approx(expected, abs=1e-5)
    written, expected = ([row["resps"] for row in results["samples"]["write"]] for results in (ours[chat], theirs))
    assert written == expected and len({str(answer) for answer in written}) > 1
    assert metrics(ours[chat]) == pytest.approx(metrics(theirs), rel=1e-4)


@needs_lm_eval
def test_a_gguf_has_the_log_likelihoods_of_its_folder(ours, folder, gguf_folder, tokenizer):
    """But for llama.cpp's 16 bits; lm-eval itself gets none of a GGUF, its issue 1437."""
    of_gguf = evaluate(folder, gguf_folder)

    found, expected = (np.array(nats_per_token(results, tokenizer)) for results in (of_gguf, ours[False]))
    assert np.abs(found - expected).mean() < 1e-3 and np.abs(found - expected).max() < 3e-3
    likely = [name for name in metrics(of_gguf) if not name.startswith("write")]
    assert [metrics(of_gguf)[name] for name in likely] == pytest.approx(
        [metrics(ours[False])[name] for name in likely], rel=5e-3
    )


@needs_lm_eval
def test_an_answer_has_the_sum_of_its_tokens_log_probabilities(ours, model_folder, tokenizer):
    """By torch, in loops."""
    from stages.lib.store import models

    net = models.load(model_folder)
    row = ours[False]["samples"]["whales"][1]
    for (prompt, answer), (found, _) in zip(row["arguments"], row["filtered_resps"], strict=True):
        ids = tokenizer.encode(prompt + answer)
        logits_TV = net(torch.tensor([ids])).logits[0].double()
        nats = 0.0
        for place in range(len(tokenizer.encode(prompt)), len(ids)):
            nats += logits_TV[place - 1].log_softmax(-1)[ids[place]].item()
        assert found == pytest.approx(nats, abs=1e-4)


@needs_lm_eval
def test_metrics_and_samples_of_the_measure(folder, model_folder, ours):
    scores = measure(folder).score(runtime(model_folder), [])

    assert scores.metrics == metrics(ours[False])
    assert {"whales.acc", "whales.acc_stderr", "write.exact_match.strict-match", "pages.bits_per_byte"} <= set(
        scores.metrics
    )
    assert {scores.metrics[f"{task}.documents"] for task in ("whales", "write", "pages", "last-word")} == {6}
    assert all(re.fullmatch(r"[A-Za-z0-9_./ -]+", name) for name in scores.metrics)
    json.dumps(scores.samples)
    shown = scores.samples["tasks"]
    assert [len(rows) for rows in shown.values()] == [harness.SHOWN] * 4
    assert [answer["answer"] for answer in shown["whales"][0]["answers"]][3] == "  é"
    assert shown["whales"][0]["marks"].keys() == {"acc"} and len(shown["write"][0]["prompt"]) == 60


def test_names_are_those_that_mlflow_takes():
    from mlflow.utils.validation import _validate_metric_name

    row = {"alias": "x", "sample_len": 3, "pass@1,none": 0.5, "pass@1_stderr,none": "N/A", "a,b|c": 1, "d,e": math.nan}
    found = dict(harness.numbers("group::task", row))

    assert found == {"group__task.documents": 3, "group__task.pass_1": 0.5, "group__task.a.b_c": 1}
    for name in found:
        _validate_metric_name(name)


# Parameters


@needs_lm_eval
def test_limit_is_of_each_tasks_documents(folder, model_folder, ours):
    found = evaluate(folder, model_folder, limit=2)

    assert {row["sample_len"] for row in found["results"].values()} == {2}
    for task, rows in found["samples"].items():
        assert [row["filtered_resps"] for row in rows] == [
            row["filtered_resps"] for row in ours[False]["samples"][task][:2]
        ]


@needs_lm_eval
def test_a_long_context_shows_more_of_a_text(folder, model_folder, ours):
    found, short = metrics(evaluate(folder, model_folder, context=250)), metrics(ours[False])

    assert found["pages.bits_per_byte"] != pytest.approx(short["pages.bits_per_byte"], rel=1e-6)
    assert found["whales.acc"] == short["whales.acc"], "their prompts fit into either"


@needs_lm_eval
def test_chat_asks_through_the_template(ours):
    plain, chat = (ours[chat]["samples"]["whales"][0]["arguments"][0][0] for chat in (False, True))

    assert chat == f"<|bos|><|user|>{plain}<|end|><|assistant|>"


@needs_lm_eval
def test_what_does_not_fit_or_has_no_template_is_refused(folder, model_folder):
    with pytest.raises(UserError, match="context is 20; a task's answers take 24"):
        evaluate(folder, model_folder, context=20)
    model = runtime(model_folder)
    model.tokenizer.chat_template = None
    with pytest.raises(UserError, match="tasks.chat is true, but the model's tokenizer has no chat template"):
        measure(folder, chat=True).score(model, [])


@pytest.mark.slow
@needs_lm_eval
def test_lm_evals_own_tasks_are_asked_by_name(tmp_path, monkeypatch):
    """And not by a path, from which lm-eval would read a task with its functions."""
    from datasets import config
    from huggingface_hub import constants

    from stages.eval.parts import lm_eval_adapter

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)  # put back to it afterwards
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "evil.yaml").write_text("task: evil\ndoc_to_text: !function evil.run\n")
    for name in ("nobody", str(tmp_path / "evil.yaml")):
        with pytest.raises(UserError, match=f"lm-eval has no task {name}"):
            lm_eval_adapter.load([], [name])


# What a folder may hold


def write(folder, text, name="task.yaml"):
    (folder / "data.jsonl").write_text('{"question": "?", "page": "A page."}\n')
    (folder / name).write_text(text)
    return folder


BASE = """
task: one
output_type: loglikelihood_rolling
dataset_path: json
dataset_kwargs: {data_files: {test: data.jsonl}}
test_split: test
doc_to_text: ""
doc_to_target: "{{page}}"
"""
WRONG = [
    ("doc_to_text: !function evil.run", "may hold values and nothing that runs: .*'!function'"),
    ("doc_to_text: !!python/object/apply:os.system [id]", "may hold values and nothing that runs"),
    ("class: evil.Task", "class can't stand in a task here; there are: task, "),
    ("custom_dataset: evil.load", "custom_dataset can't stand"),
    ("process_results: evil.marks", "process_results can't stand"),
    ("unsafe_code: true", "unsafe_code can't stand"),
    ("use_prompt: promptsource:all", "use_prompt can't stand"),
    ("group: many", "group can't stand"),
    ("task: [one, two]", r"task is \['one', 'two'\]; it must be a name"),
    ("dataset_path: org/name", "dataset_path is 'org/name'; the formats of local data are: csv, json, parquet, text"),
    ("dataset_path: pandas", "dataset_path is 'pandas'"),
    ("dataset_kwargs: {data_files: ../data.jsonl}", "data_files is '../data.jsonl', which is no file in"),
    ("dataset_kwargs: {data_files: /etc/passwd}", "data_files is '/etc/passwd', which is no file in"),
    ("dataset_kwargs: {data_files: 'https://a.b/c.jsonl'}", "data_files is 'https://a.b/c.jsonl', which is no file"),
    ("dataset_kwargs: {data_files: nobody.jsonl}", "data_files is 'nobody.jsonl', which is no file in"),
    ("dataset_kwargs: {data_files: data.jsonl, trust_remote_code: true}", "it must name data_files, and may field"),
    ("dataset_kwargs: {}", "dataset_kwargs is {}; it must name data_files"),
    ("metric_list: [{metric: rouge, hf_evaluate: true}]", "metric rouge has hf_evaluate"),
    ("metric_list: acc", "metric_list is 'acc'; it must be a list"),
    ("include: ../other.yaml", "include is '../other.yaml', which is no file in"),
    ("include: task.yaml", "include 'task.yaml' leads back to itself"),
    ("a: [", "is not YAML"),
]


@pytest.mark.parametrize(("line", "message"), WRONG)
def test_what_runs_or_leaves_the_folder_is_refused(line, message, tmp_path):
    (tmp_path / "data.jsonl").write_text("{}")
    folder = tmp_path / "tasks"
    folder.mkdir()
    key = line.partition(":")[0]
    base = "".join(f"{row}\n" for row in BASE.strip().split("\n") if not row.startswith(f"{key}:"))
    with pytest.raises(UserError, match=message) as error:
        tasks.read(write(folder, f"{base}{line}\n"))
    assert str(error.value).startswith(str(folder / "task.yaml"))


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    (tmp_path / "secret.jsonl").write_text("{}")
    (folder / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(UserError, match="data_files is 'link.jsonl', which is no file in"):
        tasks.read(write(folder, BASE.replace("data.jsonl", "link.jsonl")))


def test_includes_are_below_what_includes_them(tmp_path):
    write(tmp_path, BASE.replace("task: one\n", "num_fewshot: 3\n"), "_base")
    write(tmp_path, "include: _base\ntask: two\ndoc_to_target: other\n")
    [config] = tasks.read(tmp_path)

    assert (config["task"], config["num_fewshot"], config["doc_to_target"]) == ("two", 3, "other")
    assert config["dataset_kwargs"] == {"data_files": {"test": str(tmp_path / "data.jsonl")}}
    assert "include" not in config


def test_two_tasks_of_one_name_are_refused(tmp_path):
    write(write(tmp_path, BASE), BASE, "twin.yaml")
    with pytest.raises(UserError, match="twin.yaml: task 'one' is in .*task.yaml too"):
        tasks.read(tmp_path)


@needs_lm_eval
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"{{page}}"', "\"{{ ''.__class__.__mro__[1].__subclasses__() }}\"", "SecurityError"),
        ('"{{page}}"', '"{{nobody}}"', "UndefinedError: 'nobody' is undefined"),
        ("test_split: test", "test_split: nobody", "KeyError: 'nobody'"),
        ("loglikelihood_rolling", "guess", "invalid output_type 'guess'"),
        ('doc_to_text: ""', "metric_list: [{metric: ./evil}]", "metric ./evil is none of: acc, "),
    ],
)
def test_what_lm_eval_cannot_load_is_told_in_a_line(old, new, message, tmp_path, model_folder):
    with pytest.raises(UserError, match=f"task one: .*{message}"):
        evaluate(write(tmp_path, BASE.replace(old, new)), model_folder)


# Which models


def test_without_models_nothing_is_wanted():
    assert harness.Harness.model_validate({"models": {}}).tasks is None


@needs_lm_eval
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "tasks is missing"),
        ({"tasks": {"source": "nowhere"}}, "tasks.source is 'nowhere', which is no folder"),
        ({"tasks": {"source": "stages"}}, "tasks.source is 'stages', and no .yaml file in it has a `task`"),
        ({"tasks": {"source": "stages", "limit": 0}}, "tasks.limit is 0"),
        ({"tasks": {"source": "stages", "limits": 1}}, "limits is not a parameter; there are: source, hub, limit"),
    ],
)
def test_one_line_says_what_is_wrong(entry, message):
    with pytest.raises(UserError, match=message):
        params.technique("eval", "harness", {"models": {"student": "distill/student"}} | entry)


@pytest.mark.skipif(bool(find_spec("lm_eval")), reason="the extra `harness` is installed")
def test_without_the_extra_one_line_says_how_to_get_it(folder):
    with pytest.raises(UserError, match="eval.harness needs lm-eval: .*pip install"):
        measure(folder)
