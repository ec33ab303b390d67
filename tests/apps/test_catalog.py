"""Which model a name means: paths, variants, and a real registry in SQLite."""

import shutil
from pathlib import Path

import pytest

from apps.parts import catalog
from stages.lib.frame import files, tracking
from stages.lib.frame.errors import UserError


@pytest.fixture
def exports(folder, tmp_path, monkeypatch):
    """Two in a checkout of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(tracking.STORE, raising=False)
    for variant in ("q4", "q8"):
        shutil.copytree(folder, Path("artifacts/export", variant, "model"))
    Path("artifacts/export/onnx/model").mkdir(parents=True)


@pytest.mark.parametrize("name", ["export/q8", "artifacts/export/q8", "artifacts/export/q8/model"])
def test_a_variant_and_a_folder_mean_the_file_in_them(exports, name):
    assert catalog.find(name) == Path("artifacts/export/q8/model/model.gguf")


def test_one_gguf_of_another_name_is_found_and_of_several_none_is_guessed(folder, tmp_path):
    shutil.copy(folder / "model.gguf", tmp_path / "mine-q8.gguf")
    assert catalog.find(str(tmp_path)) == tmp_path / "mine-q8.gguf"
    shutil.copy(folder / "model.gguf", tmp_path / "mine-f16.gguf")
    with pytest.raises(UserError, match="holds 2 GGUF files: name one, e.g. .*mine-f16.gguf"):
        catalog.find(str(tmp_path))


def test_the_registry_names_what_it_holds_and_nothing_else(exports):
    assert catalog.exports() == ["export/q4", "export/q8"]
    assert not Path("mlflow.db").exists(), "looking must not create a registry"
    for variant in ("q4", "q8"):
        model = Path("artifacts/export", variant, "model")
        tracking.register(f"orchard-{variant}", model, files.digest(model), {})
    tracking.set_alias("orchard-q8", "champion", files.digest(model))
    assert catalog.exports() == ["orchard-q4@candidate", "orchard-q8@champion"]
    assert catalog.find("orchard-q8@champion") == Path("artifacts/export/q8/model/model.gguf")
    with pytest.raises(UserError, match="neither the model registry nor git has orchard-q4@champion"):
        catalog.find("orchard-q4@champion")
    Path("artifacts/export/q8/model/Modelfile").write_text("changed")
    assert catalog.exports() == ["orchard-q4@candidate", "export/q8"]
    with pytest.raises(UserError, match="git has no tag orchard-q8@[0-9a-f]{12}: "):
        catalog.find("orchard-q8@champion")
