"""Bad input gets one clear message, before any work."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.lib.frame import params
from stages.lib.frame.errors import UserError

PROFILES = sorted(Path("infra/profiles").glob("*.yaml"))


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_every_profile_is_valid(profile, monkeypatch):
    monkeypatch.setattr(params, "PARAMS_FILE", profile)
    tree = params.read()
    params.check(tree)
    assert set(tree) >= set(params.STAGES)  # DVC wants every stage, if only as `align: {}`


def set_value(tree, path, value):
    *parts, last = path.split(".")
    for part in parts:
        tree = tree[part]
    if value is None:
        del tree[last]
    else:
        tree[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("prune.wanda-50.method", "wonda", "prune.wanda-50.method is 'wonda'; there are: depth, .*magnitude, .*wanda"),
        ("prune.wanda-50.model", "distill/nobody", "'distill/nobody'; 'distill' has: .*student"),
        ("prune.wanda-50.model", "nowhere/x", "'nowhere/x'; stages are: data, tokenize"),
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
        ("compare", {"direct": ["student", "teacher"]}, r"compare is \{.*must name two paths or more"),
        ("compare", {"a": ["student"], "b": ["teacher"]}, r"compare.a is \['student'\]; .* two different evaluations"),
        ("compare", {"a": ["int8", "int8"], "b": ["teacher", "student"]}, "compare.a is .* two different evaluations"),
        ("compare", {"a": ["teacher", "int8"], "b": "student"}, "compare.b is 'student'; it must list"),
        (
            "compare",
            {"a": ["int8", "nobody"], "b": ["teacher", "student"]},
            "compare.a is 'eval/nobody'; 'eval' has: .*",
        ),
        (
            "compare",
            {"a": ["int8", "student"], "b": ["teacher", "student", "int8"]},
            "by position, .*: a has 2, b has 3",
        ),
        ("export.gguf-f16.type", "Q5_X", "export.gguf-f16.type is 'Q5_X'"),
    ],
)
def test_one_message_names_place_value_and_alternatives(path, value, message, tmp_path, monkeypatch):
    tree = YAML(typ="safe").load(Path("infra/profiles/laptop.yaml"))
    set_value(tree, path, value)
    monkeypatch.setattr(params, "PARAMS_FILE", tmp_path / "params.yaml")
    with (tmp_path / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(tree, file)
    with pytest.raises(UserError, match=message):
        params.load("prune", "wanda-50")


def test_paths_of_seeds_may_be_compared():
    tree = YAML(typ="safe").load(Path("infra/profiles/laptop.yaml"))
    params.check(tree | {"compare": {"direct": ["direct-student", "int8"], "distilled": ["student", "awq-int4"]}})


def test_missing_file_variant_and_broken_yaml(tmp_path, monkeypatch):
    monkeypatch.setattr(params, "PARAMS_FILE", tmp_path / "params.yaml")
    with pytest.raises(UserError, match="params.yaml is missing: run from the project's folder"):
        params.read()
    (tmp_path / "params.yaml").write_text("prune: {a: b: c}")
    with pytest.raises(UserError, match="is not YAML"):
        params.read()
    monkeypatch.setattr(params, "PARAMS_FILE", Path("infra/profiles/laptop.yaml"))
    with pytest.raises(UserError, match="no variant 'wonda-50' under 'prune'; there are: .*magnitude-50"):
        params.load("prune", "wonda-50")


def test_scientific_notation_is_a_number(tmp_path, monkeypatch):
    monkeypatch.setattr(params, "PARAMS_FILE", tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("data: {lr: 1e-4}\n")
    assert params.read()["data"]["lr"] == 0.0001
