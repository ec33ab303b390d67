"""What the Prefect UI keeps of a flow: its report, and an honest end for flows that were killed."""

import fcntl
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from prefect import tags
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import State
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Crashed

from flows.outcome import REPORT, SUMMARY
from flows.plan import Step
from stages.lib.frame.errors import UserError


@contextmanager
def alone(wait: bool = False) -> Iterator[None]:
    """One flow a project at a time; so every other one that Prefect believes to be running here was killed."""
    project = str(Path.cwd())
    if not (Path("dvc.yaml").is_file() and Path(".dvc").is_dir()):
        raise UserError(f"{project} has no dvc.yaml and .dvc: start the flow in the project's own folder")
    lock = Path(".dvc/tmp/lifecycle.lock")
    lock.parent.mkdir(exist_ok=True)  # a fresh clone has none yet
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise UserError(f"another flow is running in {project}") from None
        with tags(project):
            yield


def close_killed() -> None:
    """Caller is alone(). It waits for Prefect's server, so what needs none comes before."""
    project = str(Path.cwd())
    running = FlowRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING"]}}, "tags": {"all_": [project]}})
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=running):
            if str(run.id) != flow_run.id:
                client.set_flow_run_state(run.id, Crashed(message="its process was killed"), force=True)


def drop_waiting() -> None:
    """Caller is alone(). Runs of the same deployment that were due while another one worked: this one sees all that
    they would."""
    if not deployment.id:
        return
    due = {"type": {"any_": ["SCHEDULED"]}}, {"before_": datetime.now(UTC).isoformat()}
    waiting = {"state": due[0], "expected_start_time": due[1], "deployment_id": {"any_": [deployment.id]}}
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(waiting)):
            client.set_flow_run_state(run.id, Cancelled(message="the run before it did its work"), force=True)


def forget(before: float) -> int:
    """Caller is alone(). Delete this project's runs that ended before (seconds since 1970); how many."""
    old = {
        "state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]}},
        "end_time": {"before_": datetime.fromtimestamp(before, UTC).isoformat()},
        "tags": {"all_": [str(Path.cwd())]},
    }
    count = 0
    with get_client(sync_client=True) as client:
        while runs := client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(old)):
            for run in runs:
                client.delete_flow_run(run.id)
            count += len(runs)
    return count


def report(steps: list[Step], states: dict[str, State], verdicts: list[str]) -> list[Path]:
    """Every stage with its reasons and the verdicts on the exports, in Prefect's UI; the files for MLflow."""
    rows = [{"stage": step.name, "state": states[step.name].name, "why": why(step, states)} for step in steps]
    create_table_artifact(rows, key="stages", description=summary(states))
    lines = [f"| {row['stage']} | {row['state']} | {row['why']} |" for row in rows]
    page = [f"**{summary(states)}**", *verdicts, "| stage | state | why |\n|---|---|---|\n" + "\n".join(lines)]
    html = [REPORT] if REPORT.is_file() else []
    for path in html:
        create_link_artifact(path.absolute().as_uri(), link_text=str(path), key="report-html")
        page.append(f"Report on the models: `{path.absolute()}`")
    create_markdown_artifact("\n\n".join(page), key="report")
    shown = "report" in states and states["report"].is_completed()
    return [*html, SUMMARY] if shown else html


def why(step: Step, states: dict[str, State]) -> str:
    state = states[step.name]
    if not state.is_completed():
        return (state.message or "").split("\n")[0] if state.is_failed() else "what it needs has failed"
    return "; ".join(step.reasons or [f"{name} reran" for name in step.upstream] if state.name != "Cached" else [])


def summary(states: dict[str, State]) -> str:
    counts = Counter(str(state.name) for state in states.values())
    return ", ".join(f"{number} {name.lower()}" for name, number in sorted(counts.items()))


def wait_until_recorded(flow_run_id: UUID | None, tasks: int, patience: float = 15) -> None:
    """Task states reach the database after the flow has ended; a server that lives with the flow must not lose them."""
    this, end = FlowRunFilter.model_validate({"id": {"any_": [flow_run_id]}}), time.monotonic() + patience
    with get_client(sync_client=True) as client:
        while time.monotonic() < end:
            runs = client.read_task_runs(flow_run_filter=this)
            if len(runs) == tasks and not any(run.state is None or run.state.is_running() for run in runs):
                return
            time.sleep(0.1)
