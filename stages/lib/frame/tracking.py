"""What happened, in MLflow: one run a stage, the registry of models. The only file that imports mlflow (2-4 s).

A stage run carries what lineage needs: `orchard.input.<n>` and `orchard.output.<name>` tags, each "path sha256".
"""

import csv
import hashlib
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from stages.lib.frame import energy, files, processes, sqlite
from stages.lib.frame.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModelInput, Metric

STORE, LOCAL_STORE = "MLFLOW_TRACKING_URI", "sqlite:///mlflow.db"  # environment variable, and MLflow's own default
PATIENCE = 5  # seconds a server may take to answer
EXPERIMENT = "orchard"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # its page opens on the runs, not on GenAI's empty one
PIPELINE = "ORCHARD_PIPELINE_RUN"  # environment variable: the MLflow run that stage runs nest under
RECORD = "ORCHARD_RECORD"  # environment variable: the file that takes a stage's run, where no store is in reach
RESUMES_ON_ANY: Any = {"training": {"devices", "parallel"}}
SILENT = "ORCHARD_SILENT"  # environment variable: set in processes that help a stage, which itself says what they did
SPENT = ("seconds", "joules", "trained_tokens", "prompt_tokens", "completion_tokens")  # metrics: what a run took
BATCH = 1000  # metrics that MLflow takes in one call


@dataclass
class Run:
    """What a stage has to say. Metrics and curve must be the same on every machine; timings need not be."""

    metrics: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    digests: dict[Path, str] = field(default_factory=dict)  # of inputs and code: large files need to be read only once

    def place(self, folder: Path, params: BaseModel) -> Path:
        """Where in a folder this work may keep what outlives a kill: it changes with inputs, code and params, not with
        the number of processes."""
        identity = "".join([*self.digests.values(), params.model_dump_json(exclude=RESUMES_ON_ANY)])
        return folder / hashlib.sha256(identity.encode()).hexdigest()[:16]


@contextmanager
def run(stage: str, variant: str, params: BaseModel, out: Path, code: Path, inputs: list[Path]) -> Iterator[Run]:
    """Yield what the stage fills; on a clean exit write it, seconds and joules beside the artefact and to MLflow.

    `code` is the technique's file of the `code` stage (stages/lib/frame/code.py).
    """
    if SILENT in os.environ:
        yield Run(digests={path: files.digest(path) for path in [code, *inputs]})
        return
    processes.end_with_dvc()
    if RECORD not in os.environ:
        require_store()
    start, current = time.time(), Run(digests={path: files.digest(path) for path in [code, *inputs]})
    for stale in ("metrics.json", "curve.csv"):
        files.remove(out / stale)
    tags = {"orchard.stage": stage, "orchard.variant": variant, "orchard.git": revision()}
    tags |= {"orchard.code": current.digests[code]}
    tags |= {f"orchard.input.{n}": f"{path} {current.digests[path]}" for n, path in enumerate(inputs)}
    try:
        with energy.meter() as spent:
            yield current
        current.timings |= {"seconds": round(time.time() - start, 3), **spent}
        write(current, out)
        tags |= {f"orchard.output.{path.name}": f"{path} {files.digest(path)}" for path in outputs(out)}
    except BaseException as error:
        log(out, f"{stage}/{variant}", start, params, Run(), tags | {"orchard.error": redact(repr(error))}, [])
        raise
    log(out, f"{stage}/{variant}", start, params, current, tags, inputs)


def write(current: Run, out: Path) -> None:
    if current.curve:
        names = list(dict.fromkeys(name for row in current.curve for name in row))
        with files.writing(out / "curve.csv") as partial, partial.open("w", newline="") as file:
            table = csv.DictWriter(file, names, lineterminator="\n")
            table.writeheader()
            table.writerows(current.curve)
    files.write_json(out / "timings.json", current.timings)
    files.write_json(out / "metrics.json", current.metrics)  # last: its presence says that the stage ended well


def outputs(out: Path) -> list[Path]:
    return [path for path in sorted(out.iterdir()) if path.name != "timings.json" and not path.name.startswith(".")]


def log(out: Path, name: str, start: float, params: BaseModel, run: Run, tags: dict, inputs: list[Path]) -> None:
    """A stage's run to MLflow, or into the file that RECORD names, from which another machine keeps it."""
    now, values = int(time.time() * 1000), flat(run.metrics) | flat(run.timings)
    metrics = [(key, value, now, 0) for key, value in values.items() if isinstance(value, int | float)]
    metrics += [(key, row[key], now, int(row["step"])) for row in run.curve for key in row if key != "step"]
    record = {
        "out": str(out),
        "name": name,
        "start": int(start * 1000),
        "end": now,
        "params": {key: str(value)[:6000] for key, value in flat(params.model_dump()).items()},
        "metrics": metrics,
        "timings": run.timings,
        "tags": tags,
        "inputs": {str(path): tags[f"orchard.input.{n}"].split()[-1] for n, path in enumerate(inputs)},
        "status": "FAILED" if "orchard.error" in tags else "FINISHED",
    }
    if place := os.environ.get(RECORD):
        files.write_json(Path(place), record)
    else:
        keep(record)


def keep(record: dict[str, Any]) -> None:
    from mlflow.entities import Dataset, DatasetInput, LoggedModelOutput, Metric, Param

    metrics = [Metric(*each) for each in record["metrics"]]
    tags = record["tags"] | ({"mlflow.parentRunId": parent} if (parent := os.environ.get(PIPELINE)) else {})
    sets = [Dataset(path, sha256[:36], "local", path)
            for path, sha256 in record["inputs"].items() if Path(path).name != "model"]  # fmt: skip
    with client() as mlflow:
        run_id = mlflow.create_run(experiment(mlflow), record["start"], tags, record["name"]).info.run_id
        mlflow.log_batch(run_id, metrics[:BATCH], [Param(*each) for each in record["params"].items()])
        for first in range(BATCH, len(metrics), BATCH):
            mlflow.log_batch(run_id, metrics[first : first + BATCH])
        mlflow.log_inputs(run_id, [DatasetInput(each) for each in sets], read_models(mlflow, record))
        if made := record["tags"].get("orchard.output.model"):
            path, _, sha256 = made.rpartition(" ")
            mlflow.log_outputs(run_id, [LoggedModelOutput(logged(mlflow, path, sha256, run_id), step=0)])
        mlflow.set_terminated(run_id, record["status"], record["end"])


def read_models(mlflow: "MlflowClient", record: dict[str, Any]) -> "list[LoggedModelInput]":
    """The models that a run read, as MLflow has them."""
    from mlflow.entities import LoggedModelInput

    models = {path: sha256 for path, sha256 in record["inputs"].items() if Path(path).name == "model"}
    return [LoggedModelInput(logged(mlflow, path, sha256)) for path, sha256 in models.items()]


def logged(mlflow: "MlflowClient", path: str, sha256: str, run_id: str | None = None) -> str:
    """The id of MLflow's model of this content: it is one, whichever runs have made and read it."""
    import mlflow as library

    found = mlflow.search_logged_models([experiment(mlflow)], f"tags.sha256 = '{sha256}'", max_results=1)
    for model in found:
        return model.model_id
    parts = re.findall(r"[^/:.%\"']+", path)  # MLflow allows none of these
    name = "-".join(parts[-3:-1] or parts)
    labels = {"path": path, "sha256": sha256}
    return library.create_external_model(name, run_id, labels, experiment_id=experiment(mlflow)).model_id


def take(file: Path) -> None:
    """Keep the run of a stage whose outputs came from another machine, which knows no git and wrote `file`."""
    record = files.read_json(file)
    record["tags"]["orchard.git"] = revision()
    if record["status"] == "FINISHED":
        files.write_json(Path(record["out"], "timings.json"), record["timings"])
    keep(record)


def numbers(values: Mapping[str, Any]) -> "list[Metric]":
    """What of `values` MLflow can keep as a metric."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(key, value, now, 0) for key, value in values.items() if isinstance(value, int | float)]


def store() -> str:
    """Where runs are kept."""
    return os.environ.get(STORE) or LOCAL_STORE


def present() -> bool:
    """Whether there is a store: looking into one that isn't there would create it."""
    return STORE in os.environ or Path(LOCAL_STORE.removeprefix("sqlite:///")).is_file()


def require_store() -> None:
    if (address := store()).startswith(("http://", "https://")):
        require_server(STORE, address)


@cache
def require_server(variable: str, address: str) -> None:
    """Refuse to start work that a dead server would hold up for minutes: MLflow and Prefect try again and again."""
    if reason := why_silent(address):
        raise UserError(
            f"{variable} is {address}, and no server answers there within {PATIENCE} s ({reason}); "
            f"start it, or unset {variable}"
        )


def why_silent(address: str) -> str:
    """Why no server answers there, "" if one does."""
    import http.client
    from urllib.error import HTTPError
    from urllib.request import urlopen

    try:
        urlopen(f"{address.rstrip('/')}/health", timeout=PATIENCE).close()
    except HTTPError:
        pass  # it answers, only not to this
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    return ""


@contextmanager
def client() -> "Iterator[MlflowClient]":
    """MLflow's client, one process at a time: SQLite takes one writer, and only one may create the tables."""
    import fcntl

    require_store()
    import mlflow

    with Path("mlflow.db.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        prepare(store())
        yield mlflow.MlflowClient()


@cache
def prepare(address: str) -> None:
    """A file of SQLite that is whole: a damaged one is kept aside, and a new one made beside its place, since tables
    that a kill has left half made would fail every later run."""
    import mlflow

    logging.getLogger("mlflow.store.db").setLevel(logging.CRITICAL)  # it shows a traceback of what it raises, too
    if (place := sqlite.place(address)) is None:
        return
    if place.exists() and not sqlite.whole(place, "alembic_version"):
        aside = sqlite.keep_aside(place)
        print(f"{place} is damaged: kept as {aside}, and begun anew; `python -m flows.promote` registers what is here")
    if not place.exists():
        with files.writing(place) as beside:
            mlflow.MlflowClient(f"sqlite:///{beside}").search_experiments(max_results=1)


def experiment(mlflow: "MlflowClient") -> str:
    found = mlflow.get_experiment_by_name(EXPERIMENT)
    if found is None:
        return mlflow.create_experiment(EXPERIMENT, tags=KIND)
    for key, value in KIND.items():
        if found.tags.get(key) != value:
            mlflow.set_experiment_tag(found.experiment_id, key, value)
    return found.experiment_id


def start_pipeline(name: str) -> str:
    """Open the run that the stages of one flow nest under; export its id as ORCHARD_PIPELINE_RUN."""
    with client() as mlflow:
        return mlflow.create_run(experiment(mlflow), None, {"orchard.git": revision()}, name).info.run_id


def finish_pipeline(run_id: str, succeeded: bool, seconds: float, reports: list[Path]) -> None:
    """Close the pipeline's run: the reports become its artifacts, the numbers of JSON ones its metrics."""
    values = {"seconds": seconds}
    for report in (each for each in reports if each.suffix == ".json"):
        values |= flat(files.read_json(report))
    with client() as mlflow:
        mlflow.log_batch(run_id, numbers(values))
        for report in reports:
            mlflow.log_artifact(run_id, str(report))
        mlflow.set_terminated(run_id, "FINISHED" if succeeded else "FAILED")


@dataclass(frozen=True)
class Past:
    """A stage run as lineage sees it."""

    id: str
    stage: str
    variant: str
    git: str
    code: str
    params: dict[str, str]
    inputs: list[tuple[str, str]]  # path, sha256
    spent: dict[str, float]  # seconds, joules, tokens


def producer(path: Path, sha256: str) -> Past | None:
    """The newest successful run whose output `path` had this content."""
    wanted = f"tags.`orchard.output.{path.name}` LIKE '% {sha256}' AND attributes.status = 'FINISHED'"
    with client() as mlflow:
        found = mlflow.search_runs([experiment(mlflow)], wanted, max_results=1, order_by=["attributes.start_time DESC"])
    for data, info in ((each.data, each.info) for each in found):
        named = [data.tags[key].rpartition(" ") for key in sorted(data.tags) if key.startswith("orchard.input.")]
        inputs = [(path, sha256) for path, _, sha256 in named]
        stage, variant, git, code = (data.tags.get(f"orchard.{key}", "") for key in ("stage", "variant", "git", "code"))
        spent = {name: data.metrics[name] for name in SPENT if name in data.metrics}
        return Past(info.run_id, stage, variant, git, code, data.params, inputs, spent)
    return None


def register(name: str, path: Path, sha256: str, tags: Mapping[str, str]) -> str:
    """A version of the registered model `name` for the artefact at `path`, alias `candidate`; the same content once."""
    made_by = producer(path, sha256)
    with client() as mlflow:
        version = numbered(mlflow, name, sha256)
        if version is None:
            if not mlflow.search_registered_models(f"name = '{name}'"):
                mlflow.create_registered_model(name)
            run_id = made_by.id if made_by else None
            model_id = logged(mlflow, str(path), sha256, run_id)
            labels = {"path": str(path), "sha256": sha256, **tags}
            version = mlflow.create_model_version(
                name, f"models:/{model_id}", run_id, labels, model_id=model_id
            ).version
        mlflow.set_registered_model_alias(name, "candidate", version)
    return str(version)


def all_registered() -> list[tuple[Path, str]]:
    """Path and sha256 of every version of every registered model."""
    with client() as mlflow:
        found = whole(mlflow.search_model_versions)
    return [(Path(each.tags["path"]), each.tags["sha256"]) for each in found if "sha256" in each.tags]


def forget(before: float, kept: set[str]) -> int:
    """Delete for good the runs that ended before (seconds since 1970), but those kept and the flows' that these are
    part of; how many. Where a server has the store, `mlflow gc` there makes the room."""
    with client() as mlflow:
        ended = f"attributes.end_time < {int(before * 1000)}"
        found = whole(partial(mlflow.search_runs, [experiment(mlflow)], ended))
        parents = {run.data.tags.get("mlflow.parentRunId") for run in found if run.info.run_id in kept}
        old = [run.info.run_id for run in found if run.info.run_id not in kept | parents]
        for run_id in old:
            mlflow.delete_run(run_id)
        if old and (database := sqlite.place(store())):
            for first in range(0, len(old), BATCH):
                words = ["--backend-store-uri", store(), "--run-ids", ",".join(old[first : first + BATCH])]
                subprocess.run([sys.executable, "-m", "mlflow", "gc", *words], check=True, capture_output=True)
            sqlite.shrink(database)
    return len(old)


def whole(search: Callable[..., Any]) -> list[Any]:
    """What MLflow finds on all its pages."""
    found, token = [], None
    while True:
        found += (page := search(page_token=token))
        if not (token := page.token):
            return found


def numbered(mlflow: "MlflowClient", name: str, sha256: str) -> str | None:
    """The version of a registered model that has this content."""
    known = mlflow.search_model_versions(f"name = '{name}'")
    return next((str(each.version) for each in known if each.tags.get("sha256") == sha256), None)


def registered(name: str, alias: str = "candidate") -> tuple[str, Path, str] | None:
    """Version, path and sha256 of a registered model; None when there is none of that name or alias."""
    from mlflow.exceptions import MlflowException

    with client() as mlflow:
        try:
            found = mlflow.get_model_version_by_alias(name, alias)
        except MlflowException:
            return None
    return str(found.version), Path(found.tags["path"]), found.tags["sha256"]


def set_alias(name: str, alias: str, sha256: str) -> None:
    """To the version that has this content, which was registered."""
    with client() as mlflow:
        if (version := numbered(mlflow, name, sha256)) is None:
            raise UserError(f"the model registry has no version of {name} with the sha256 {sha256[:12]}")
        mlflow.set_registered_model_alias(name, alias, version)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    items = {}
    for key, value in tree.items():
        items |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return items


def redact(text: str) -> str:
    """Error messages may quote an environment that holds keys; MLflow must not."""
    for name, value in os.environ.items():
        if re.search("TOKEN|SECRET|PASSWORD|KEY|AUTH", name) and len(value) >= 8:
            text = text.replace(value, f"<{name}>")
    return text[:5000]


def revision() -> str:
    """The commit, with "-dirty" when tracked files other than dvc.lock differ from it."""
    git = ["git", "-c", "core.quotePath=off"]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    if commit.returncode:
        return "no git"
    same = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", ":!dvc.lock"], capture_output=True)
    return commit.stdout.strip() + "-dirty" * bool(same.returncode)  # where git cannot tell, nobody can
