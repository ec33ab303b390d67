"""Stages on other machines: two real Ray nodes and a real Slurm, each with a folder of its own, and S3 between them."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from flows import runners
from flows.plan import Step
from flows.runners import elsewhere
from flows.runners.kubernetes import Kubernetes
from flows.runners.slurm import Slurm
from stages.lib.frame import files, tracking
from stages.lib.frame.errors import UserError

LOCAL = "127.0.0.1"
RAY = {"on": "ray", "memory": 0.1, "resources": {"there": 1}}


def step(name: str, **meta) -> Step:
    return Step(name, [], ["it never ran"], [], "", meta)


def test_a_variant_overrules_its_stage_and_a_profile_dvc_yaml():
    tree = {"runners": {"prune": {"on": "slurm", "cpus": 2}, "prune@left": {"on": "local"}}}
    meta = {"runner": {"on": "ray", "gpus": 1}}
    assert runners.of(step("prune@left", **meta), tree).on == "local"
    assert runners.of(step("prune@right", **meta), tree) == Slurm(on="slurm", cpus=2)
    assert runners.of(step("align@sft", **meta), tree).gpus == 1
    assert runners.of(step("align@sft"), {}).on == "local"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"on": "moon"}, "params.yaml: runners.prune is {'on': 'moon'}; it needs an `on`, which may be: local, ray"),
        ("ray", "params.yaml: runners.prune is 'ray'; it needs an `on`"),
        (
            {"on": "ray", "gpu": 1},
            "params.yaml: runners.prune.gpu is not a parameter; there are: on, cpus, gpus, memory",
        ),
        ({"on": "slurm", "cpus": 0}, "params.yaml: runners.prune.cpus is 0: "),
        ({"on": "kubernetes"}, "params.yaml: runners.prune.image is missing"),
    ],
)
def test_a_wrong_entry_is_refused_by_its_place(entry, said):
    with pytest.raises(UserError) as error:
        runners.of(step("prune@left"), {"runners": {"prune": entry}})
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("gpus", [0, 2])
def test_the_job_is_one_by_kubernetes_own_schema(gpus, monkeypatch):
    """No cluster was at hand: this is all that is known of it."""
    schemas = pytest.importorskip("kubernetes_validate")
    monkeypatch.setattr(elsewhere.remote, "url", lambda _: "s3://bucket/path")
    runner = Kubernetes(on="kubernetes", image="registry/orchard:1", secret="s3", gpus=gpus)
    job = runner.manifest("pretrain@teacher_1", "pretrain@teacher_1-0a1b2c")
    schemas.validate(job, "1.37", strict=True)
    job["spec"]["template"]["spec"]["containers"][0]["gpus"] = 1
    with pytest.raises(schemas.ValidationError):
        schemas.validate(job, "1.37", strict=True)


def with_bucket(project, bucket) -> None:
    project.environment |= bucket.environment
    project.run(sys.executable, "-m", "flows.remote", bucket.url)


def other_machine(project, folder: Path) -> Path:
    """A folder with Orchard's code alone: no git, no data, no params."""
    for package in ("flows", "stages"):
        shutil.copytree(project.folder / package, folder / package)
    shutil.rmtree(folder / "stages/prune")  # of another version, too
    (folder / ".dvc").mkdir()
    return folder


def end(process: subprocess.Popen) -> None:
    """Ours and what it has started, by their ids."""
    with_children = [process, *psutil.Process(process.pid).children(recursive=True)]
    for each in reversed(with_children):
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


@pytest.fixture
def ray_nodes(project, bucket, free_port, tmp_path):
    """A head without processors, and a node that works in a folder of its own."""
    pytest.importorskip("ray")
    address, nodes = f"{LOCAL}:{free_port()}", []
    project.environment |= {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
    there = other_machine(project, tmp_path / "there")
    for where, environment in (
        (["--head", f"--port={address.split(':')[1]}", "--num-cpus=0", "--include-dashboard=false"], {}),
        ([f"--address={address}", "--num-cpus=1", '--resources={"there": 1}'], {"ORCHARD_HOME": str(there)}),
    ):
        command = [Path(sys.executable).parent / "ray", "start", *where, f"--node-ip-address={LOCAL}", "--block"]
        command += ["--object-store-memory=80000000", "--memory=1000000000", f"--temp-dir=/tmp/ray-{os.getpid()}"]
        known = project.environment | bucket.environment | environment
        known.pop("MLFLOW_TRACKING_URI")
        nodes.append(subprocess.Popen(command, env=known, cwd=tmp_path, stdout=(tmp_path / "ray.log").open("a")))
        time.sleep(5)
    yield there
    for node in reversed(nodes):
        end(node)
    shutil.rmtree(f"/tmp/ray-{os.getpid()}", ignore_errors=True)


@pytest.mark.slow
def test_two_ray_nodes_one_of_them_killed_at_work(project, finished, bucket, ray_nodes, monkeypatch):
    with_bucket(project, bucket)
    project.params("runners", {"prune": RAY | {"gpus": 1}})
    refused = project.flow(check=1)
    assert "no node of the Ray cluster has what a stage wants" in refused and project.ran() == []
    project.params("runners", {"prune": RAY})
    project.params("prune.left.seconds", 5)
    command = [sys.executable, "-m", "flows.lifecycle"]
    with (project.folder / "said.log").open("w") as log:
        flow = subprocess.Popen(command, cwd=project.folder, env=project.environment, stdout=log, stderr=log)
    kill_worker(ray_nodes, "prune@left", flow)
    said = project.folder / "said.log"
    assert flow.wait() == 0, said.read_text()
    assert "Ray lost it: " in said.read_text() and said.read_text().count("hello from prune left cold") == 2
    assert not {"prune@left", "prune@right"} & set(project.ran())
    assert (project.folder / "artifacts/export/final/model/text").read_text() == "raw wordsle"
    assert "seconds" in files.read_json(project.folder / "artifacts/prune/left/timings.json")
    assert list((ray_nodes / ".dvc/tmp/worker/projects").iterdir()) == []
    assert not [name for name in bucket.names() if "jobs" in name]
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project.folder}/mlflow.db")
    made = Path("artifacts/prune/left/model")
    run = tracking.producer(made, files.digest(made))
    assert run and run.variant == "left" and run.git == tracking.revision()


def kill_worker(there: Path, stage: str, flow: subprocess.Popen) -> None:
    """Ray's process that runs a stage, once that has begun."""
    while True:
        for log in (there / ".dvc/tmp/worker/projects").glob(f"{stage}-*/ran.log"):
            ours = psutil.Process(int(log.parent.name.rpartition("-")[2])).parent()
            assert ours
            ours.kill()
            return
        assert flow.poll() is None
        time.sleep(0.1)


@pytest.fixture
def slurm(project, free_port, tmp_path):
    """A node of two processors, all of it this user's own."""
    tools = [shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("munged", "slurmctld", "slurmd")]
    if not all(tools):
        pytest.skip("needs Slurm: apt-get install slurm-wlm")
    here, host = tmp_path / "slurm", socket.gethostname()
    here.mkdir(mode=0o700)
    (here / "key").write_bytes(os.urandom(128))
    (here / "key").chmod(0o600)
    (here / "slurm.conf").write_text(f"""\
ClusterName=test
SlurmctldHost={host}({LOCAL})
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
AuthInfo=socket={here}/munge
SlurmUser={getpass.getuser()}
SlurmdUser={getpass.getuser()}
StateSaveLocation={here}
SlurmdSpoolDir={here}
SlurmctldPidFile={here}/slurmctld.pid
SlurmdPidFile={here}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
MpiDefault=none
NodeName={host} NodeAddr={LOCAL} CPUs=2 RealMemory=2000
PartitionName=main Nodes=ALL Default=YES State=UP
""")
    project.environment["SLURM_CONF"] = str(here / "slurm.conf")
    munge = [f"--{name}={here}/{name}" for name in ("key-file", "pid-file", "log-file", "seed-file")]
    (here / "key").rename(here / "key-file")
    commands = [
        [tools[0], "--foreground", "--force", *munge, f"--socket={here}/munge"],
        [tools[1], "-D", "-c"],
        [tools[2], "-D"],
    ]
    with (here / "log").open("w") as log:
        daemons = [subprocess.Popen(each, env=project.environment, stdout=log, stderr=log) for each in commands]
    while "idle" not in project.run("sinfo", check=None):
        assert not any(each.poll() for each in daemons), (here / "log").read_text()
        time.sleep(0.5)
    yield
    for each in reversed(daemons):
        each.terminate()
        each.wait()


@pytest.mark.slow
def test_stages_as_jobs_of_slurm(project, finished, bucket, slurm):
    with_bucket(project, bucket)
    project.params("runners", {"prune": {"on": "slurm", "memory": 0.1}, "export": {"on": "slurm", "memory": 9000}})
    project.params("prune.right.text", "fail")
    shown = project.flow(check=1)
    assert "hello from prune left cold" in shown and "hello from data words warm" in shown
    assert "prune@right failed: told to fail" in shown
    assert "export@final failed: sbatch: error: Batch job submission failed: Requested node configuration" in shown
    assert not {"prune@left", "prune@right", "export@final"} & set(project.ran())
    project.params("prune.right.text", "r")
    project.params("runners.export.memory", 0.1)
    project.flow()
    assert project.lock() == finished.lock()
