"""Bad input gets one clear message, before any work."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.align import Alignment
from stages.data import Dataset
from stages.lib.frame import gates, params
from stages.lib.frame.errors import UserError
from stages.prune import Pruning
from stages.prune.wanda import Wanda
from stages.traces import Recording

LAPTOP = Path("infra/profiles/laptop.yaml")
ENDPOINT = {"method": "endpoint", "source": "data/problems", "count": 4}


@pytest.fixture
def tree():
    return YAML(typ="safe").load(LAPTOP)


def changed(tree, path, value):
    """The tree with a value at "a.b.c"; None removes it."""
    *parts, last = path.split(".")
    place = tree
    for part in parts:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return tree


def save(tree, file):
    with file.open("w") as stream:
        YAML(typ="safe").dump(tree, stream)
    return file


def test_the_default_is_valid_and_its_variants_are_techniques():
    params.check(params.read(LAPTOP))
    technique = params.load(Pruning, "wanda-50", LAPTOP)
    assert isinstance(technique, Wanda) and (technique.sparsity, technique.calibration.rows) == (0.5, 128)


WRONG = [
    ("prune.wanda-50.method", "wonda", "prune.wanda-50.method is 'wonda'; there are: depth, .*magnitude, .*wanda"),
    ("prune.wanda-50.model", "distill/nobody", "'distill/nobody'; 'distill' has: .*student"),
    ("prune.wanda-50.model", "nowhere/x", "'nowhere/x'; it must be stage/variant, stages are: pretrain, align"),
    (
        "prune.wanda-50.model",
        "data/corpus",
        "model is 'data/corpus'; it must be stage/variant, stages are: pretrain",
    ),
    ("distill.student.tokens", "traces/logits", "distill.student.tokens is .*, stages are: tokenize$"),
    ("traces.solutions.model", "data/problems", "traces.solutions.model is .*, stages are: pretrain, .*"),
    ("prune.wanda-50.sparcity", 0.5, "prune.wanda-50.sparcity is not a parameter; there are: .*sparsity"),
    (
        "align.sft.training.learning_rate",
        1,
        "learning_rate is not a parameter; there are: steps, batch_size,.* lr,",
    ),
    ("prune.wanda-50.sparsity", 1.5, r"prune.wanda-50.sparsity is 1.5: .*less than"),
    ("prune.wanda-50.sparsity", "half", r"prune.wanda-50.sparsity is 'half': .*number"),
    ("pretrain.teacher.training.lr", "fast", r"pretrain.teacher.training.lr is 'fast'"),
    ("pretrain.teacher.heads", 3, "hidden must be a multiple of heads"),
    ("align.sft.training", None, "align.sft.training is missing"),
    ("distil", {}, "unknown stage distil; there are: data, .*distill"),
    ("data.corpus", [1], r"data.corpus must be a mapping, not \[1\]"),
    ("data.corpus.method", None, "data.corpus.method is missing; there are: chats, classify, documents, "),
    ("prune", None, "prune is missing, which dvc.yaml wants; without variants it is `{}`"),
    ("prune.wanda-50.model", "align", "prune.wanda-50.model is 'align': it must be stage/variant"),
    ("prune.wanda-50.model", "align/a'b", "prune.wanda-50.model is .*: it must be stage/variant"),
    ("export.gguf-f16.type", "Q5_X", "export.gguf-f16.type is 'Q5_X': .*'F16'"),
    ("eval.speed", None, "eval.speed is missing; every model is measured by: accuracy, bits_per_byte, speed"),
    ("eval.sped", {}, "eval.sped is 'sped'; there are: accuracy, bits_per_byte, harness, judge, speed"),
    ("eval.speed.records", "data/nobody", "eval.speed.records is 'data/nobody'; 'data' has: corpus"),
    ("eval.accuracy.per_familly", 3, "eval.accuracy.per_familly is not a parameter; there are: records, per_family"),
    ("eval.models.student", "distill/nobody", "eval.models.student is 'distill/nobody'; 'distill' has: logits"),
    ("eval.models.student", "data/corpus", "eval.models.student is 'data/corpus'; .* stages are: pretrain, align"),
    ("eval.models.student", 3, "eval.models.student is '3'; it must be stage/variant"),
    ("endpoints", {"solutions": ENDPOINT}, "solutions stands under endpoints and under traces: rename one"),
    ("compare", {"direct": ["student", "teacher"]}, r"compare is \{.*must name two paths or more"),
    ("compare", {"a": ["student"], "b": ["teacher"]}, r"compare.a is \['student'\]; .* two different evaluations"),
    ("compare", {"a": ["int8", "int8"], "b": ["teacher", "student"]}, "compare.a is .* two different evaluations"),
    ("compare", {"a": ["teacher", "int8"], "b": "student"}, "compare.b is 'student'; it must list"),
    (
        "compare",
        {"a": ["int8", "nobody"], "b": ["teacher", "student"]},
        "compare.a is 'nobody'; eval.models has: teacher, ",
    ),
    (
        "compare",
        {"a": ["int8", "student"], "b": ["teacher", "student", "int8"]},
        "by position, .*: a has 2, b has 3",
    ),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG)
def test_one_message_names_place_value_and_alternatives(path, value, message, tree):
    with pytest.raises(UserError, match=message) as error:
        params.check(changed(tree, path, value), Path("mine.yaml"))
    assert str(error.value).startswith("mine.yaml: ")


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"nobody": "distill/student"}, "mine.yaml: eval.harness.models is 'nobody'; eval.models has: teacher, "),
        ({"student": "align/sft"}, "models.student is 'align/sft'; in eval.models it is 'distill/student'"),
    ],
)
def test_a_measures_own_models_are_among_those_of_eval(models, message, tree):
    """What it says of a name is shown beside what the others say of it."""
    with pytest.raises(UserError, match=message):
        params.check_own_models(changed(tree, "eval.harness", {"models": models}), Path("mine.yaml"))


@pytest.mark.parametrize("name", ["it's", "..", "-rf", "a b", "a/b", "v1.5", "$(x)", "", 7, True])
@pytest.mark.parametrize("section", ["data", "prune", "endpoints", "eval.models", "compare"])
def test_what_is_no_name_is_refused_before_a_shell_sees_it(section, name, tree):
    """v1.5: DVC takes prune.v1.5 for a path of three steps."""
    entries = {
        "data": {"method": "documents", "source": "x", "licence": "none"},
        "prune": tree["prune"]["wanda-50"],
        "endpoints": ENDPOINT,
        "eval.models": "align/dpo",
        "compare": ["teacher", "student"],
    }
    tree["compare"] = {"one": ["teacher", "student"], "two": ["student", "teacher"]}
    place = tree["eval"]["models"] if section == "eval.models" else tree[section]
    place[name] = entries[section]
    with pytest.raises(UserError, match="cannot be a name; letters, digits, _ and - can"):
        params.check(tree)


@pytest.mark.parametrize("section", ["data", "endpoints", "eval"])
def test_a_section_is_a_mapping(section, tree, tmp_path):
    for value in (None, [], "all"):
        file = save(tree | {section: value}, tmp_path / "params.yaml")
        with pytest.raises(UserError, match=f"params.yaml: {section} is .*; it must be a mapping, without entries"):
            params.read(file)


def test_a_stage_checks_its_own_variant_and_its_parents_and_no_other(tree, tmp_path):
    file = save(changed(tree, "export.gguf-f16.type", "Q5_X"), tmp_path / "mine.yaml")
    params.load(Pruning, "wanda-50", file)
    file = save(changed(tree, "prune.wanda-50.model", "distill/nobody"), file)
    with pytest.raises(UserError, match="mine.yaml: prune.wanda-50.model is 'distill/nobody'"):
        params.load(Pruning, "wanda-50", file)
    params.load(Pruning, "wanda-2of4", file)


def test_endpoints_are_variants_of_traces(tree, tmp_path):
    file = save(tree | {"endpoints": {"big": ENDPOINT}}, tmp_path / "params.yaml")
    assert params.load(Recording, "big", file).method == "endpoint"
    changed(tree, "distill.student.traces", "traces/big")
    params.check(tree | {"endpoints": {"big": ENDPOINT}})
    with pytest.raises(UserError, match="distill.student.traces is 'traces/big'; 'traces' has: logits, solutions"):
        params.check(tree)


def test_nothing_is_measured_where_there_are_no_models(tree):
    params.check(tree | {"eval": {}} | {"gates": {}})


def test_paths_of_seeds_may_be_compared(tree):
    params.check(tree | {"compare": {"direct": ["direct-student", "int8"], "distilled": ["student", "awq-int4"]}})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("gates.model", "export/nobody", "gates.model is 'export/nobody'; 'export' has: .*gguf-q8_0"),
        ("gates.teacher", "nobody", "gates.teacher is 'nobody'; eval.models has: teacher"),
        ("gates.kl", -1, "gates.kl is -1: .*greater than 0"),
        ("gates.bytes", None, "gates.bytes is missing"),
        ("gates.speed", 1, "gates.speed is not a parameter; there are: model, teacher"),
    ],
)
def test_gates_are_checked_alike(path, value, message, tree):
    assert gates.read(tree)
    with pytest.raises(UserError, match=message):
        gates.read(changed(tree, path, value))


def test_missing_file_variant_and_broken_yaml(tmp_path):
    with pytest.raises(UserError, match="params.yaml is missing: run from the project's folder"):
        params.read(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("prune: {a: b: c}")
    with pytest.raises(UserError, match="is not YAML"):
        params.read(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("prune: {a: 1}\nprune: {b: 1}")
    with pytest.raises(UserError, match="(?s)is not YAML: .*duplicate key"):
        params.read(tmp_path / "params.yaml")
    for text in ("", "- prune"):
        (tmp_path / "params.yaml").write_text(text)
        with pytest.raises(UserError, match="must be a mapping of stages"):
            params.read(tmp_path / "params.yaml")
    with pytest.raises(UserError, match="no variant 'wonda-50' under 'prune'; there are: .*magnitude-50"):
        params.load(Pruning, "wonda-50", LAPTOP)
    with pytest.raises(UserError, match="no variant 'x' under 'align'; there are: sft, dpo"):
        params.load(Alignment, "x", LAPTOP)


def test_scientific_notation_is_a_number(tmp_path):
    (tmp_path / "params.yaml").write_text("data: {lr: 1e-4}\n")
    assert params.read(tmp_path / "params.yaml")["data"]["lr"] == 0.0001


def test_values_stay_as_they_were_read():
    technique = params.load(Pruning, "wanda-50", LAPTOP)
    with pytest.raises(ValueError, match="frozen"):
        technique.held_out_rows = 3


def test_data_of_the_hub_are_variants_of_data_and_stand_apart(tree, tmp_path):
    entry = {"method": "chats", "source": "org/set", "hub": {"revision": "a" * 40}, "licence": "MIT"}
    file = save(tree | {"hub": {"theirs": entry}}, tmp_path / "params.yaml")
    assert params.load(Dataset, "theirs", file).method == "chats"
    params.check(tree | {"hub": {"theirs": entry}})
    tree["data"]["theirs"] = entry
    with pytest.raises(UserError, match="theirs stands under `data`; such a one belongs under `hub`"):
        params.check(tree)
    del tree["data"]["theirs"]
    tree["traces"]["big"] = ENDPOINT
    with pytest.raises(UserError, match="big stands under `traces`; such a one belongs under `endpoints`"):
        params.check(tree)


@pytest.mark.parametrize("section", params.SECTIONS)
def test_a_section_beside_the_stages_may_be_left_out(section, tree, tmp_path):
    tree.pop(section, None)
    params.check(params.read(save(tree, tmp_path / "params.yaml")))
