"""Who may enter the model registry: real SQLite MLflow, the toy project's real artefacts."""

import pytest

from flows import promote
from stages.lib.frame import files, tracking


@pytest.fixture
def project(done, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/registry.db")
    return done


def export(project, name, **evaluated):
    """Another export of the same source, with what its evaluation measured."""
    project.params(f"export.{name}", {"method": "appends", "text": name, "model": "prune/left"})
    project.params(f"eval.models.{name}", f"export/{name}")
    files.write_json(promote.ARTIFACTS / "export" / name / "model" / "weights.json", name)
    files.write_json(promote.ARTIFACTS / "export" / name / "metrics.json", {"kl": 0.1})
    for measure, measured in {"accuracy": {"accuracy": 0.45}, "speed": {"bytes": 90} | evaluated}.items():
        files.write_json(promote.ARTIFACTS / "eval" / name / measure / "metrics.json", measured)


def test_what_passes_is_candidate_what_ships_is_champion_the_rest_stays_out(project):
    export(project, "small", bytes=10)
    export(project, "large", bytes=1000)
    assert promote.offer() == [
        "export/small is candidate: orchard-small version 1",
        "export/large is refused: it has 1,000 bytes; at most 95 allowed",
        "export/final is champion: orchard-final version 1",
    ]
    assert tracking.registered("orchard-large") is None
    assert tracking.registered("orchard-small", "champion") is None
    assert tracking.registered("orchard-small")[0] == "1"
    for name, variant in {"orchard-final": "export/final", "orchard-final-source": "prune/left"}.items():
        folder = promote.ARTIFACTS / variant / "model"
        assert tracking.registered(name, "champion") == ("1", folder, files.digest(folder))


def test_a_worse_model_leaves_the_champion_where_it_is(project):
    promote.offer()
    champion = tracking.registered("orchard-final", "champion")
    files.write_json(promote.ARTIFACTS / "export/final/model/text.json", "worse")
    files.write_json(promote.ARTIFACTS / "eval/student/accuracy/metrics.json", {"accuracy": 0.1})
    (verdict,) = promote.offer()
    wanted = "it keeps 20.0% of the teacher's accuracy; 80% wanted"
    assert verdict == f"export/final is refused: {wanted}"
    assert tracking.registered("orchard-final", "champion") == tracking.registered("orchard-final") == champion


@pytest.mark.parametrize("missing", ["eval/teacher/accuracy", "eval/student/speed", "export/final"])
def test_what_was_not_made_is_not_offered(project, missing):
    files.remove(promote.ARTIFACTS / missing / "metrics.json")
    assert promote.offer() == []
