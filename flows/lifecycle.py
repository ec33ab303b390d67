"""dvc.yaml as a Prefect flow: one task a DVC stage, the same edges; DVC alone decides what is up to date, and what is
needs no task: thousands of them would take Prefect minutes.

python -m flows.lifecycle                       everything
python -m flows.lifecycle prune@wanda-50 eval   these stages and what they need
python -m flows.lifecycle --why                 what would rerun, and because of what (--all: and what would not)
python -m flows.lifecycle --profile tiny        first make params.yaml of infra/profiles/tiny.yaml (--show: print it)
"""

import gc
import os
import sys
import time
from functools import cache
from uuid import UUID

from flows import plan, profiles, remote, runners, server, warm
from flows.plan import Step
from flows.runners import Runner

if __name__ == "__main__" and not {"--why", "--show", "-h", "--help"} & set(sys.argv):
    server.start()  # it needs as long as the imports below
    gc.disable()  # until main(): it finds nothing in what is being imported, and takes a fifth of the time

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Completed, Failed

from flows import challenge, console, history, inherit, outcome, promote, sources, webhook
from flows.console import Output
from stages.lib.frame import gates, params, tracking
from stages.lib.frame.errors import UserError, command, told


@cache
def prepare(targets: tuple[str, ...]) -> list[Step]:
    """The plan; if something has to run, after a check of params.yaml and with the warm process started."""
    try:
        steps = plan.read(targets)
    except UserError:
        params.check(params.read())  # says it better where params.yaml is the reason that dvc.yaml cannot be read
        raise
    if unsettled(steps):
        warm.start()
        tree = params.read()
        params.check(tree)
        gates.read(tree)
        sources.read(tree)
        webhook.check()
        inherit.provide(tree)
        if reason := remote.why_down():
            os.environ[remote.DOWN] = reason
            print(f"{reason}; what this run makes is pushed by the next one that reaches it", file=sys.stderr)
        runners.check(steps, tree)
    return steps


def unsettled(steps: list[Step]) -> list[Step]:
    return [step for step in steps if not step.settled]


def bring_up_to_date(step: Step, runner: Runner) -> State:
    """The task of one stage."""
    output = Output(step.name, get_run_logger().info)
    state = runner.reproduce(step, dict(os.environ), output)
    return Completed(name=state) if state else Failed(message=output.last or "it ended without a word")


def submit(steps: list[Step], tree: params.Tree) -> dict[str, PrefectFuture]:
    futures: dict[str, PrefectFuture] = {}
    git = tracking.revision()
    for step in steps:
        run = task(
            name=step.name,
            task_run_name=step.name,
            version=f"{step.code}+g{git[:7]}{git[40:]}",
            retries=int(step.meta.get("retries", 0)),
            retry_delay_seconds=1,
            cache_policy=NO_CACHE,  # DVC is the only cache
            persist_result=False,
        )(bring_up_to_date)
        parents = [futures[parent] for parent in step.needs if parent in futures]
        futures[step.name] = run.submit(step, runners.of(step, tree), wait_for=parents)  # pyright: ignore[reportCallIssue]
    return futures


def has_failed(state: State) -> bool:
    """A stage that waits for a failed one stays pending."""
    return not state.is_completed() and not state.is_pending()


def follow(futures: dict[str, PrefectFuture]) -> None:
    """Wait for every stage; show how far the flow is in the UI."""
    shown = create_progress_artifact(0.0, key="progress", description="share of the stages that are done")
    assert isinstance(shown, UUID)
    for done, _ in enumerate(as_completed(list(futures.values())), 1):
        update_progress_artifact(shown, 100 * done / len(futures))


def give_up(reason: str) -> None:
    """Without its server Prefect tries again for a minute at every call, in every thread."""
    print(f"{reason}; what is finished is kept: start the flow again", file=sys.stderr, flush=True)
    warm.stop()
    os._exit(1)


@flow(name="lifecycle", persist_result=False)
def lifecycle(targets: list[str] = [], offer: bool = True) -> State:  # noqa: B006  (Prefect's UI shows the default)
    """Bring the targets, or everything, up to date; then offer what was exported to the registry, if `offer`."""
    try:
        return bring_all_up_to_date(tuple(targets), offer)
    except Exception as error:  # Prefect would show where in our code; this is for a person
        if message := told(error):
            return Failed(message=message)
        raise


def bring_all_up_to_date(targets: tuple[str, ...], offer: bool) -> State:
    steps, start, parent = prepare(targets), time.time(), ""
    if busy := unsettled(steps):
        os.environ[tracking.PIPELINE] = parent = tracking.start_pipeline(" ".join(["lifecycle", *targets]))
    with warm.stopping(), server.watched(give_up):
        if futures := submit(busy, params.read()):
            follow(futures)
        states = {step.name: Completed(name="Cached") for step in steps}
        states |= {name: future.wait() or future.state for name, future in futures.items()}
    failed = [f"{name} failed: {state.message}" for name, state in states.items() if has_failed(state)]
    if busy:
        plan.sort_lock()
    verdicts: list[str] = []
    if offer and not failed and (busy or promote.due()):
        try:
            verdicts = promote.offer()
        except challenge.Unevaluated as error:
            failed.append(str(error))
    for verdict in verdicts:
        get_run_logger().info(verdict)
    with remote.forgiving():
        remote.catch_up()
    reports = history.report(steps, states, verdicts)
    if busy:
        tracking.finish_pipeline(parent, not failed, time.time() - start, reports)
    summary = history.summary(states)
    return Failed(message="\n".join([*failed, summary])) if failed else Completed(message=summary)


def main(*targets: str, why: bool = False, all: bool = False, profile: str | None = None, show: bool = False) -> None:
    """Run dvc.yaml as a Prefect flow.

    Args:
        targets: Stages or groups of stages in dvc.yaml, with what they need; default: everything.
        why: Print what would rerun and because of what, then stop.
        all: With --why: what is up to date too.
        profile: First make params.yaml of infra/profiles/PROFILE.yaml and what that is based on.
        show: With --profile: print that params.yaml, then stop.
    """
    gc.freeze()  # what was imported stays
    gc.enable()
    if show:
        print(profiles.show(profile or profiles.DEFAULT), end="")
        return
    if profile:
        profiles.use(profile)
    if why:
        params.check(params.read())
        print(plan.explain(plan.read(targets), all))
        return
    console.begin()
    with history.alone():
        steps = prepare(targets)  # while the server starts
        history.close_killed()
        state = lifecycle(list(targets), return_state=True)
        history.wait_until_recorded(state.state_details.flow_run_id, len(unsettled(steps)))
    if not state.is_completed():
        raise UserError(state.message)
    print(state.message if targets else outcome.show(params.read()))


if __name__ == "__main__":
    command(main)
