"""Profiles against RFC 7396 and against each other: real files, no mocks."""

import json
import re
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows import profiles
from stages.lib.frame import files, params
from stages.lib.frame.errors import UserError

RFC_7396 = """
{"a":"b"} {"a":"c"} {"a":"c"}
{"a":"b"} {"b":"c"} {"a":"b","b":"c"}
{"a":"b"} {"a":null} {}
{"a":"b","b":"c"} {"a":null} {"b":"c"}
{"a":["b"]} {"a":"c"} {"a":"c"}
{"a":"c"} {"a":["b"]} {"a":["b"]}
{"a":{"b":"c"}} {"a":{"b":"d","c":null}} {"a":{"b":"d"}}
{"a":[{"b":"c"}]} {"a":[1]} {"a":[1]}
["a","b"] ["c","d"] ["c","d"]
{"a":"b"} ["c"] ["c"]
{"a":"foo"} null null
{"a":"foo"} "bar" "bar"
{"e":null} {"a":1} {"e":null,"a":1}
[1,2] {"a":"b","c":null} {"a":"b"}
{} {"a":{"bb":{"ccc":null}}} {"a":{"bb":{}}}
"""  # Appendix A: original, patch, result


@pytest.mark.parametrize("line", RFC_7396.split("\n")[1:-1])
def test_the_examples_of_the_standard(line):
    original, patch, result = map(json.loads, line.split())
    before = json.dumps(original)
    assert profiles.patch(original, patch) == result
    assert json.dumps(original) == before


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    profiles.PROFILES.mkdir(parents=True)
    save("laptop", "# The default\n\ndata:\n  a: {seed: 1} # first\n  b: {seed: 2}\n")
    save("other", "# Another\n\ndata:\n  b: null\n  c: {seed: 3} # third\n")
    return tmp_path


def save(name: str, text: str) -> None:
    (profiles.PROFILES / f"{name}.yaml").write_text(text)


def test_an_overlay_keeps_its_header_the_order_of_the_base_and_the_comments_of_both(folder):
    shown = profiles.show("other").splitlines()
    assert shown[:5] == ["# Another", "", "data:", "  a: {seed: 1} # first", "  c: {seed: 3} # third"]
    assert "prune: {}" in shown  # dvc.yaml wants every stage
    assert profiles.show("laptop") == Path("infra/profiles/laptop.yaml").read_text()  # complete: as it stands


def test_what_an_anchor_brings_stands_where_it_is_meant(folder):
    """Else an edit of params.yaml within `<<` would change nothing, without a word."""
    text = """base: none
data:
  a: &a {seed: 1, training: &t {steps: 5, lr: 0.1}} # first
  b: {<<: *a, training: {<<: *t, lr: 0.2}} # second
  c: {<<: [{size: 3}, *a], seed: 2}
"""
    save("anchored", text)
    assert re.sub(" +#", " #", profiles.show("anchored")).splitlines()[1:5] == [
        "data:",
        "  a: {seed: 1, training: {steps: 5, lr: 0.1}} # first",
        "  b: {seed: 1, training: {steps: 5, lr: 0.2}} # second",
        "  c: {size: 3, seed: 2, training: {steps: 5, lr: 0.1}}",
    ]
    shown, read = (YAML(typ="safe").load(each)["data"] for each in (profiles.show("anchored"), text))
    assert shown == read


def test_a_profile_may_name_another_base_or_none(folder):
    save("third", "base: other\ndata: {c: {seed: 4}}\n")
    save("alone", "base: none\ndata: {z: {seed: 9}}\n")
    assert profiles.merged("third")["data"] == {"a": {"seed": 1}, "c": {"seed": 4}}
    assert profiles.merged("alone")["data"] == {"z": {"seed": 9}}
    assert "base" not in profiles.merged("third") and "base" not in profiles.show("alone")


def test_what_is_wrong_with_a_profile_is_one_line(folder):
    save("a", "base: b\n")
    save("b", "base: a\n")
    save("typo", "distil: {}\n")
    save("broken", "data: {a: b: c}\n")
    for name, message in {
        "a": "b.yaml: base is 'a', which is built on 'b'",
        "typo": "typo.yaml: unknown key distil; there are: base, data, ",
        "broken": "broken.yaml is not YAML",
        "huge": "no profile 'huge' in infra/profiles; there are: a, b, broken, laptop, other, typo",
    }.items():
        with pytest.raises(UserError, match=message):
            profiles.merged(name)


def test_a_profile_is_chosen_unless_edits_would_be_lost(folder):
    target = Path("params.yaml")
    for name in ("other", "laptop", "other"):
        profiles.use(name)
        assert target.read_text() == profiles.show(name)
    target.write_text("name: mine\n")
    with pytest.raises(UserError, match="has edits that are in no profile"):
        profiles.use("laptop")
    assert target.read_text() == "name: mine\n"


@pytest.mark.parametrize("name", profiles.known())
def test_every_profile_of_the_project_is_valid_and_reads_as_it_is_shown(name):
    tree = YAML(typ="safe").load(profiles.show(name))
    assert tree == profiles.merged(name) and "<<" not in profiles.show(name)
    params.check(tree)
    assert set(tree) >= set(params.STAGES)
    assert "teacher" not in list(params.models(tree))[1:]  # the first is what all are compared with


def test_the_default_profile_is_the_params_file_of_the_repository():
    assert profiles.show(profiles.DEFAULT) == params.PARAMS_FILE.read_text()


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
@pytest.mark.parametrize(
    "external", ["{source: given, sha256: HASH}", "{source: org/name, revision: abc, sha256: null}"]
)
def test_the_lines_for_an_own_model_are_a_profile(page, external, tmp_path, monkeypatch, model_folder):
    shutil.copytree("infra/profiles", tmp_path / "infra/profiles")
    shutil.copytree(model_folder, tmp_path / "given")
    found = re.search(r"```yaml\n(base: own-model\n.*?)```", Path(page).read_text(), re.DOTALL)
    assert found
    monkeypatch.chdir(tmp_path)
    pinned = external.replace("HASH", files.digest(Path("given")))
    (tmp_path / "infra/profiles/mine.yaml").write_text(re.sub(r"(?<=&mine ){.*?}", pinned, found[1]))
    tree = YAML(typ="safe").load(profiles.show("mine"))
    params.check(tree)
    wanted = {name: value for name, value in YAML(typ="safe").load(pinned).items() if value}
    assert tree["tokenize"]["theirs"]["external"] == tree["pretrain"]["teacher"]["external"] == wanted
