"""The tiny profile end to end, by the flow and by plain `dvc repro`, in copies of the project."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows import profiles, promote
from stages.lib.frame import gates, params, tracking

ROOT = Path(__file__).parents[1]
NETWORK = ROOT / "tests/network"  # its sitecustomize.py notes what leaves this machine

pytestmark = pytest.mark.slow


def run(folder: Path, *command: str, code: int = 0, said: str | None = None) -> str:
    """Output of `python -m ...` in a project, watched by tests/network; its exit code must be the expected one."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # what an activated environment does
    environment = os.environ | {"PATH": path, "PREFECT_HOME": str(folder.parent / "prefect"), "PREFECT_API_URL": ""}
    environment |= {"PYTHONPATH": str(NETWORK), "NETWORK_LOG": str(folder.parent / "network.log")}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, env=environment, input=said
    )
    assert done.returncode == code, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout + done.stderr


def project(folder: Path) -> Path:
    """The files of this work tree that git would commit, with the tiny profile chosen, as a repository of its own."""
    listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "params.yaml").write_text(profiles.show("tiny"))
    (folder / "dvc.lock").unlink(missing_ok=True)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "tiny"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A project in which the flow has run once."""
    folder = project(tmp_path_factory.mktemp("flow") / "project")
    run(folder, "flows.lifecycle")
    return folder


def test_every_model_is_evaluated_and_the_report_shows_it(finished):
    summary = json.loads((finished / "artifacts/report/summary.json").read_text())
    names = {row["variant"] for row in summary["models"]}
    assert {"teacher", "student", "direct-student", "wanda-2of4", "int8", "awq-int4", "gguf-q4_k_m"} <= names
    page = (finished / "artifacts/report/report.html").read_text()
    assert all(name in page for name in names)


def test_a_second_run_does_nothing(finished):
    before = (finished / "dvc.lock").read_bytes()
    run(finished, "flows.lifecycle")
    said = run(finished, "dvc", "repro")
    assert "didn't change" in said and (finished / "dvc.lock").read_bytes() == before
    assert [line for line in said.splitlines() if line.startswith("Running")] == ["Running stage 'code':"]


def test_plain_dvc_repro_gives_the_same_lock_to_the_byte(finished, tmp_path):
    folder = project(tmp_path / "project")
    run(folder, "dvc", "repro")
    assert (folder / "dvc.lock").read_text() == (finished / "dvc.lock").read_text()


def changed(folder: Path) -> set[str]:
    """Stages that plain DVC would run, but for the one that always runs."""
    status = json.loads(run(folder, "dvc", "status", "--json").splitlines()[-1])
    return {name for name, why in status.items() if why != ["always changed"]} - {"code"}


def planned(folder: Path) -> set[str]:
    """Stages that the flow would run for a reason of their own."""
    lines = run(folder, "flows.lifecycle", "--why").splitlines()
    return {line.removesuffix(": reruns") for line in lines if line.endswith(": reruns")} - {"code"}


MEASURES = ("accuracy", "bits_per_byte", "speed")


@pytest.mark.parametrize(
    ("file", "old", "new", "reruns"),
    [
        ("stages/prune/wanda.py", "import torch", "# a comment\nimport torch", ()),
        ("stages/prune/wanda.py", "import torch", "import torch  # and another\n", ()),
        ("stages/prune/wanda.py", "import torch", "import math\nimport torch", ("prune@wanda-50", "prune@wanda-2of4")),
        ("stages/eval/speed.py", "from statistics", "import math\nfrom statistics", ("speed",)),
        ("stages/lib/runtimes/executorch.py", None, "\nUNUSED = 1\n", MEASURES),
    ],
)
def test_an_edit_reruns_just_what_can_run_it(finished, file, old, new, reruns):
    source = (finished / file).read_text()
    assert old is None or old in source
    (finished / file).write_text(source + new if old is None else source.replace(old, new, 1))
    try:
        names = set(reruns)
        if names <= set(MEASURES):
            models = json.loads((finished / "artifacts/report/summary.json").read_text())["models"]
            names = {f"{measure}@{model['variant']}" for measure in reruns for model in models}
        assert planned(finished) == names
        assert changed(finished) == names
        assert not names or f"because {file} changed" in run(finished, "flows.lifecycle", "--why")
    finally:
        (finished / file).write_text(source)
    assert planned(finished) == changed(finished) == set()


def test_a_parameter_reruns_what_depends_on_it(finished):
    params = (finished / "params.yaml").read_text()
    (finished / "params.yaml").write_text(params.replace("k: 16", "k: 8", 1))
    why = run(finished, "flows.lifecycle", "--why")
    (finished / "params.yaml").write_text(params)
    assert "traces@logits: reruns\n    because parameter traces.logits.k: 16 -> 8\n" in why


def test_the_end_of_a_run_fits_a_terminal(finished):
    lines = run(finished, "flows.lifecycle").splitlines()  # what goes to stdout comes first
    [last] = [number for number, line in enumerate(lines) if line.startswith("next")]
    end = lines[: last + 1]
    assert end[0].startswith("model") and len(end) > 12 and all(len(line) <= 80 for line in end)
    assert "make chat" in end[-1] and "artifacts/export/gguf-q8_0/model" in end[-3]


def test_the_gates_judge_every_export(finished, monkeypatch):
    monkeypatch.chdir(finished)
    tree = params.read()
    verdicts = promote.judge(tree)
    assert {verdict.export for verdict in verdicts} == set(gates.measured(tree)) and len(verdicts) > 2
    for verdict in verdicts:
        known = tracking.registered(f"orchard-{verdict.export.partition('/')[2]}")
        assert (known is None) == (verdict.standing == "refused")


def test_the_model_that_ships_talks(finished):
    assert run(finished, "apps.chat", "--max-tokens", "8", said="one\n").strip()


def test_nothing_has_left_this_machine(finished):
    """The whole run above, plain DVC, and the talk; that the hook works is tested in tests/flows/test_network.py."""
    log = (finished.parent / "network.log").read_text().splitlines()
    assert sum("flows.lifecycle" in line for line in log) >= 1 and sum(" dvc " in line for line in log) >= 1
    assert [line for line in log if line.startswith("OUTSIDE")] == []


def test_lineage_goes_back_to_the_raw_data(finished):
    tree = run(finished, "flows.lineage", "export/gguf-q8_0")
    for step in ("distill/student", "traces/logits", "align/dpo", "pretrain/teacher", "tokenize/bpe", "data/corpus"):
        assert step in tree
    assert "stages/data/corpus" in tree


def test_a_damaged_artefact_is_replaced(finished):
    weights = finished / "artifacts/distill/student/model/model.safetensors"
    whole = weights.read_bytes()
    weights.unlink()  # a link into the cache may be read-only
    weights.write_bytes(whole[:1000])
    run(finished, "flows.lifecycle")
    assert weights.read_bytes() == whole


def test_bad_params_stop_before_any_work_and_leave_everything(finished):
    params, lock = (finished / "params.yaml").read_text(), (finished / "dvc.lock").read_bytes()
    (finished / "params.yaml").write_text(params.replace("sparsity: 0.5", "sparsity: 5", 1))
    said = run(finished, "flows.lifecycle", code=1)
    (finished / "params.yaml").write_text(params)
    assert "params.yaml: prune.magnitude-50.sparsity is 5" in said
    assert (finished / "dvc.lock").read_bytes() == lock
    assert changed(finished) == set()
