"""From files as other tools write them to a profile that runs: what is recognised, said, refused and written."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows import init, profiles, proposal
from stages.data import Dataset, _recognise
from stages.data._recognise import Asked, recognise
from stages.lib.frame import gates, params
from stages.lib.frame.errors import UserError
from stages.lib.store import models
from stages.lib.text import chat

ROOT = Path(__file__).parents[2]
COUNT = 60
LABELS = ("good", "bad")
WORDS = ["river", "stone", "candle", "window", "garden", "letter", "winter", "bridge", "market", "silver"]


def sentence(number: int) -> str:
    """Another one for each number below 1,000."""
    digits = [int(digit) for digit in f"{number:03}"]
    return " ".join(["the", *(WORDS[(digit + place * 3) % 10] for place, digit in enumerate(digits)), "was seen again"])


def sharegpt(i: int) -> dict:
    turns = [("human", sentence(i)), ("gpt", sentence(i + 100)), ("human", "and then?"), ("gpt", sentence(i + 200))]
    return {"conversations": [{"from": who, "value": said} for who, said in turns]}


def messages(i: int) -> dict:
    said = [("system", "Be brief."), ("user", sentence(i)), ("assistant", sentence(i + 100))]
    return {"messages": [{"role": role, "content": content} for role, content in said]}


def alpaca(i: int) -> dict:
    return {"instruction": f"Say it again, {i}", "input": sentence(i), "output": sentence(i)}


def completion(i: int) -> dict:
    return {"prompt": sentence(i), "completion": sentence(i + 100)}


def preference(i: int) -> dict:
    return {"prompt": sentence(i), "chosen": sentence(i + 100), "rejected": sentence(i + 200)}


def labelled(i: int) -> dict:
    return {"review": f"{sentence(i)} {LABELS[i % 2]}", "stars": LABELS[i % 2], "id": i}


def plain(i: int) -> dict:
    return {"body": sentence(i)}


def extraction(i: int) -> dict:
    return {"text": sentence(i), "found": {"first": WORDS[i % 10], "seen": i % 2 == 0}}


def extraction_in_json(i: int) -> dict:
    return extraction(i) | {"found": json.dumps(extraction(i)["found"])}


def judged(i: int) -> dict:
    return completion(i) | {"label": i % 3 == 0}


SHAPES = {  # rows -> technique, and what of the row the model must see
    sharegpt: ("chats", [sentence(0), sentence(100), sentence(200)]),
    messages: ("chats", ["Be brief.", sentence(0), sentence(100)]),
    alpaca: ("chats", ["Say it again, 0", sentence(0)]),
    completion: ("chats", [sentence(0), sentence(100)]),
    preference: ("preferences", [sentence(0), sentence(100), sentence(200)]),
    judged: ("preferences", [sentence(0), sentence(100)]),
    labelled: ("classify", [f"{sentence(0)} good\nbad or good?"]),
    plain: ("documents", [sentence(0)]),
    extraction: ("extract", [sentence(0), "first, seen", '{"first": "river", "seen": true}']),
    extraction_in_json: ("extract", [sentence(0), '{"first": "river", "seen": true}']),
}


def save(file: Path, rows: list[dict]) -> Path:
    if file.suffix == ".csv":
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif file.suffix == ".parquet":
        import pyarrow
        from pyarrow.parquet import write_table

        write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def here(tmp_path, monkeypatch, model_folder) -> Path:
    """A project's folder with its profiles and a model."""
    shutil.copytree("infra/profiles", tmp_path / "infra/profiles")
    shutil.copytree(model_folder, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


MODEL = Path("model")


def written(name: str) -> dict:
    """The profile, merged, as DVC will read it; the flow's own check has passed it."""
    tree = YAML(typ="safe").load(profiles.show(name))
    params.check(tree)
    gates.read(tree)
    return tree


@pytest.mark.parametrize("row", SHAPES, ids=lambda row: row.__name__)
def test_every_shape_becomes_a_profile(row, here, capsys):
    method, seen = SHAPES[row]
    file = save(Path("My Data!.csv" if row is labelled else "My Data!.jsonl"), [row(i) for i in range(COUNT)])
    init.main(file, model=MODEL)
    said = capsys.readouterr().out
    tree = written("my-data")
    assert tree["data"]["mine"]["method"] == method and tree["data"]["mine"]["source"] == str(file)
    assert (
        tree["pretrain"]["teacher"]["external"]["source"] == tree["tokenize"]["theirs"]["external"]["source"] == "model"
    )
    assert f"({method})" in said.splitlines()[0] and "example 5 of 5" in said
    assert said.count("  | ") >= 5 and "estimate" in said and "profile    infra/profiles/my-data.yaml" in said

    technique = params.technique("data", "mine", tree["data"]["mine"])
    assert isinstance(technique, Dataset)
    first = next(technique.records(file))
    shown = "\n".join(init.shown(models.load_tokenizer(MODEL), first))
    assert all(text in shown for text in seen)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_the_format_of_a_file_does_not_matter(suffix, tmp_path):
    found = recognise(save(tmp_path / f"rows{suffix}", [labelled(i) for i in range(COUNT)]), Asked())
    assert found.method == "classify" and found.fields == {"text_field": "review", "label_field": "stars"}


def test_a_folder_of_texts(here, capsys):
    folder = Path("letters")
    folder.mkdir()
    for i in range(COUNT):
        (folder / f"{i:02}.txt").write_text(" ".join(sentence(j) for j in range(i * 4, i * 4 + 4)))
    init.main(folder, model=MODEL)
    tree = written("letters")
    assert tree["pretrain"]["mine"]["training"]["steps"] >= proposal.STEPS
    assert tree["tokenize"]["theirs"]["documents"] == "data/mine" and "corpus" not in tree["data"]
    assert "(documents)" in capsys.readouterr().out


def test_what_is_said_is_so(here, capsys):
    """Counts and lengths, against what they are by construction and by the tokenizer."""
    rows = [labelled(i) for i in range(COUNT)]
    file = save(Path("own.jsonl"), [*rows, rows[3], rows[4], {"review": " ", "stars": "good"}])
    init.main(file, model=MODEL)
    said = capsys.readouterr().out
    assert f"{COUNT + 3} read, 1 empty or too short, 2 duplicates" in said
    tree, tokenizer = written("own"), models.load_tokenizer(MODEL)
    technique = params.technique("data", "mine", tree["data"]["mine"])
    assert isinstance(technique, Dataset)
    prepared = _recognise.prepare(technique, file)
    assert f"{len(prepared.train)} to train on, {len(prepared.held_out)} held out" in said
    lengths = sorted(len(chat.chat_ids(tokenizer, row["prompt"], row["solution"])) for row in prepared.train)
    assert f"longest {lengths[-1]}" in said
    good = sum(row["solution"] == "good" for row in prepared.train)
    assert f"good {good} ({good / len(prepared.train):.0%})" in said


def test_replies_with_a_verdict_are_learnt_by_kto_the_rarer_kind_as_much_as_the_other(here, capsys):
    init.main(save(here / "own.jsonl", [judged(i) for i in range(COUNT)]), model=MODEL)
    said, entry = capsys.readouterr().out, written("own")["align"]["mine"]
    assert "(preferences)" in said and ", liked" in said and ", disliked" in said
    liked, disliked = (int(word) for word in re.search(r"verdicts +(\d+) liked, (\d+) disliked", said).groups())
    assert liked + disliked > COUNT * 0.8 and entry["method"] == "kto"
    assert entry["desirable"] == pytest.approx(disliked / liked, abs=0.01) and "undesirable" not in entry


@pytest.mark.parametrize(("count", "size"), [(10, 1), (500, 1), (600, 2), (3000, 4)])
def test_few_chats_make_small_steps_and_not_more_rounds(count, size):
    lengths = {"mine": proposal.Lengths([20] * count, 300, 200)}
    tree, works = proposal.plan("chats", proposal.SMOLLM2, lengths, 512, {}, True, [])
    training = tree["align"]["mine"]["training"]
    assert training["batch_size"] == size and training["steps"] == -(-3 * 20 * count // (512 * size))
    assert (3 * 20 * count) <= works[0].tokens <= 3 * 20 * count + 512 * size


def test_the_estimate_is_its_formula():
    works = [proposal.Work(100, 100, 50), proposal.Work(1000, 10, 19, beside=5, read=600)]
    said = init.estimate(works, flops_a_second=1000.0, watts=2.0)
    assert works[0].bytes == 1600 and works[1].bytes == 16 * 10 + 4 * 1005
    # (6 * 100 * 50 + 6 * 1000 * 19 + 2 * 5 * 600) / 1000 = 150 s
    assert "150 seconds" not in said and "2.5 minutes" in said
    assert "300 J" in said and "estimate" in said


def test_tools_that_a_template_has_no_place_for_go_into_the_systems_words(here, capsys):
    """The smallest model has no room for such a system."""
    listed = [{"name": "look", "description": "Looks.", "parameters": {}}]
    rows = [completion(i) | {"tools": json.dumps(listed)} for i in range(COUNT)]
    with pytest.raises(UserError, match="every row is longer than the context of 256 tokens"):
        init.main(save(here / "own.jsonl", rows), model=MODEL)
    assert "tools go into the system's words" in capsys.readouterr().out
    tokenizer = models.load_tokenizer(MODEL)
    assert not init.takes_tools(tokenizer)
    tokenizer.chat_template = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}" + tokenizer.chat_template
    assert init.takes_tools(tokenizer)


def test_a_time_limit_makes_every_training_shorter(here, capsys, monkeypatch):
    file = save(here / "own.jsonl", [labelled(i) for i in range(COUNT)])
    monkeypatch.setattr(init, "measured", lambda: (1e9, 10.0))
    init.main(file, model=MODEL, name="whole")
    seconds = said_seconds(capsys.readouterr().out)
    init.main(file, model=MODEL, name="half", minutes=seconds / 120)
    said = capsys.readouterr().out
    share = int(re.search(r"allow (\d+)% of the steps", said)[1]) / 100
    assert said_seconds(said) == pytest.approx(seconds / 2, rel=0.1)
    whole, half = written("whole"), written("half")
    for stage, name in (("align", "mine"), ("distill", "student")):
        steps = [tree[stage][name]["training"]["steps"] for tree in (whole, half)]
        assert steps[1] == pytest.approx(steps[0] * share, abs=steps[0] * 0.006 + 1), stage
    init.main(file, model=MODEL, name="enough", minutes=seconds)
    assert written("enough")["align"] == whole["align"] and "allow" not in capsys.readouterr().out


def test_a_time_limit_counts_what_a_teacher_reads_and_too_short_a_one_is_refused(here, monkeypatch):
    works = [proposal.Work(100, 100, 50), proposal.Work(1000, 10, 20, beside=5, read=600)]  # 30,000, 120,000 + 6,000
    assert proposal.share_of(works, 81_000) == 0.5 and proposal.share_of(works, 6000) == 0
    _, halves = proposal.shorter({}, works, 0.5)
    assert sum(work.flops for work in halves) == 81_000
    monkeypatch.setattr(init, "measured", lambda: (1e6, 10.0))
    with pytest.raises(UserError, match="--minutes 0.001 is too short to learn anything here: it takes"):
        init.main(save(here / "own.jsonl", [labelled(i) for i in range(COUNT)]), model=MODEL, minutes=0.001)
    assert not Path("infra/profiles/own.yaml").exists()


def said_seconds(said: str) -> float:
    value, unit = re.search(r"estimate +([\d.,]+) (\w+)", said).groups()
    return float(value.replace(",", "")) * {"seconds": 1, "minutes": 60, "hours": 3600}[unit]


def test_this_machine_is_measured():
    flops_a_second, watts = init.measured()
    assert flops_a_second > 1e8 and watts > 0


def test_the_shape_is_that_of_the_model(model_folder):
    net = models.load(model_folder)
    shape = proposal.shape_of(model_folder)
    assert shape.parameters == net.num_parameters()
    assert (shape.layers, shape.hidden, shape.heads, shape.kv_heads) == (2, 256, 4, 2)
    linear = {name: part.weight for name, part in net.model.layers.named_modules() if hasattr(part, "in_features")}
    assert shape.adapted == sum(sum(weight.shape) for weight in linear.values())
    assert shape.body == sum(weight.numel() for weight in net.model.layers.parameters())


def test_without_a_model_rows_are_shown_in_chatml_and_lengths_are_about(here, capsys):
    init.main(save(Path("own.csv"), [labelled(i) for i in range(COUNT)]))
    said = capsys.readouterr().out
    assert f"  | <|im_start|>user\n  | {sentence(0)} good" in said or "  | <|im_start|>user\n  | the " in said
    assert "(bytes / 4: models/smollm2.gguf is not here" in said
    assert written("own")["prune"]["width"]["hidden"] == 384  # two thirds of SmolLM2's 576


def test_the_teacher_labels_only_where_there_is_something_to_label(here):
    file = save(Path("own.csv"), [labelled(i) for i in range(COUNT)])
    init.main(file, model=MODEL)
    assert not written("own")["traces"] and written("own")["distill"]["student"]["traces"] == "data/mine"
    more = save(Path("more.jsonl"), [{"review": sentence(i)} for i in range(300, 400)])
    init.main(file, model=MODEL, unlabelled=more, force=True)
    tree = written("own")
    assert tree["traces"]["labels"]["source"] == "data/unlabelled"
    assert tree["data"]["unlabelled"]["labels"] == ["bad", "good"] and tree["data"]["texts"]["source"] == "more.jsonl"


def test_fields_can_be_named(here):
    rows = [{"q": f"{sentence(i)} ?", "a": sentence(i + 100), "kind": LABELS[i % 2]} for i in range(COUNT)]
    file = save(Path("own.jsonl"), rows)
    init.main(file, prompt="q", reply="a", model=MODEL)
    assert written("own")["data"]["mine"]["prompt_field"] == "q"
    init.main(file, text="q", label="kind", template="Which? {text}", names={"good": "yes"}, model=MODEL, force=True)
    mine = written("own")["data"]["mine"]
    assert (mine["method"], mine["template"], mine["names"]) == ("classify", "Which? {text}", {"good": "yes"})
    init.main(file, as_="documents", text="a", model=MODEL, force=True, name="third", licence="CC0")
    assert written("third")["data"]["mine"]["licence"] == "CC0"
    init.main(file, text="q", fields=["a", "kind"], model=MODEL, name="fourth")
    mine = written("fourth")["data"]["mine"]
    assert (mine["method"], mine["fields"]) == ("extract", ["a", "kind"])


UNKNOWN = "say what they hold: `--as classify --text FIELD --label FIELD`, `--prompt FIELD --reply FIELD`"
GOOD = [labelled(i) for i in range(COUNT)]
REFUSED = {
    "empty": ([], {}, "own.jsonl: it is empty"),
    "two texts": ([{"q": sentence(i), "a": sentence(i + 9)} for i in range(COUNT)], {}, UNKNOWN),
    "two kinds of fields": (GOOD, {"fields": ["stars"], "label": "stars"}, "ask for classify, extract: choose one"),
    "no such fields": (GOOD, {"fields": ["stars", "points"]}, "no field 'points'; its fields are: review, stars, id"),
    "numbers": (
        [{"x": i, "y": i * i} for i in range(COUNT)],
        {},
        "no format that is known; its fields are x ('0'), y ('0')",
    ),
    "two answers": (
        [{"question": f"is {sentence(i)}", "answer": LABELS[i % 2]} for i in range(COUNT)],
        {},
        "it may be chats or classify; its fields are question",
    ),
    "not named": ([plain(i) for i in range(COUNT)], {"as_": "classify"}, "which fields classify should read"),
    "no such field": (GOOD, {"label": "label"}, "no field 'label'; its fields are: review, stars, id"),
    "half a pair": (GOOD, {"prompt": "review"}, "--prompt and --reply belong together"),
    "two kinds": (GOOD, {"as_": "chats", "label": "stars"}, "ask for chats, classify: choose one"),
    "one class": (
        [{"text": sentence(i), "label": "good"} for i in range(COUNT)],
        {},
        "'label' has the values 'good': it takes two labels",
    ),
    "unseen label": (
        [{"text": sentence(i), "label": LABELS[i % 2], "split": "train"} for i in range(COUNT)]
        + [{"text": "so and so", "label": "odd", "split": "held_out"}] * 1
        + [{"text": sentence(i), "label": "good", "split": "held_out"} for i in range(90, 99)],
        {},
        "label 'odd' is only in the held-out part (1 rows)",
    ),
    "alike": (
        [{"text": sentence(i), "label": f"good {i % 2}"} for i in range(COUNT)],
        {},
        "labels 'good 0' and 'good 1' both begin with the token",
    ),
    "some unlabelled": (
        [{"text": sentence(i), "label": LABELS[i % 2] if i % 3 else None} for i in range(COUNT)],
        {},
        "20 rows have no label: put them into a file of their own",
    ),
    "all too long": (
        [{"prompt": sentence(i) * 200, "completion": "yes"} for i in range(COUNT)],
        {},
        "every row is longer than the context of 256",
    ),
    "too few": (GOOD[:9], {}, "9 rows read, 0 empty or too short, 0 duplicates: 9 are left, and it takes 20"),
    "template": (GOOD, {"template": "Which?"}, "it must hold {text}, where the text goes"),
    "no file": (None, {}, "own.jsonl does not exist"),
    "of the hub": (GOOD, {"split": "dev"}, "--subset and --split are for data sets of the hub"),
    "idle": ([plain(i) for i in range(COUNT)], {"template": "{text}"}, "are for labelled texts"),
    "bad name": (GOOD, {"name": "a b"}, "'a b' cannot be a name"),
    "base": (GOOD, {"name": "own-model", "force": True}, "is what others are built on"),
    "taken": (GOOD, {"name": "tiny"}, "infra/profiles/tiny.yaml is there already"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_one_line_and_nothing_is_written(case, here):
    rows, arguments, complaint = REFUSED[case]
    file = Path("own.jsonl")
    if rows is not None:
        save(file, rows)
    before = {path: path.read_bytes() for path in profiles.PROFILES.iterdir()}
    with pytest.raises(UserError) as error:
        init.main(file, model=MODEL, **arguments)
    assert complaint in str(error.value) and "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in profiles.PROFILES.iterdir()} == before


def test_rows_that_are_too_long_are_counted(here, capsys):
    rows = [completion(i) for i in range(COUNT)] + [
        {"prompt": "long " * 2000, "completion": f"yes {i}"} for i in (1, 2)
    ]
    init.main(save(Path("own.jsonl"), rows), model=MODEL)
    assert "2 longer than the context of 256 (left out)" in capsys.readouterr().out


@pytest.mark.slow
def test_the_profile_runs_to_the_file_that_ships(tmp_path, model_folder):
    """Labelled texts and a random model: the flow itself, in a copy of this project."""
    folder = tmp_path / "project"
    listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    for name in filter(lambda name: (ROOT / name).is_file(), listed.splitlines()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "dvc.lock").unlink(missing_ok=True)
    shutil.copytree(model_folder, folder / "models/tiny")
    save(folder / "own.csv", [labelled(i) for i in range(300)])
    save(folder / "more.jsonl", [{"review": sentence(i)} for i in range(300, 600)])
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "own"]):
        subprocess.run([*git, *command], cwd=folder, check=True)

    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_API_URL": ""}
    asked = ["flows.init", "own.csv", "--model", "models/tiny", "--unlabelled", "more.jsonl"]
    for command in (asked, ["flows.lifecycle", "--profile", "own"]):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert list((folder / "artifacts/export/q8_0/model").glob("*.gguf"))
    measured = json.loads((folder / "artifacts/eval/q8_0/accuracy/metrics.json").read_text())
    assert {"accuracy.good", "accuracy.bad"} <= measured.keys()
