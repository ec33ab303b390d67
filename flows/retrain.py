"""New data in, and a new champion out if it is no worse: for a person, or by the clock and on new data (make schedule).

python -m flows.retrain

Copies the sources that params.yaml names under `retrain`, brings everything up to date as flows.lifecycle does, says
what of the data is new since the champion was made and whether it is of another kind, and lets the new model challenge
the champion.
"""

import sys
from pathlib import Path

from flows import server

if __name__ == "__main__" and not {"-h", "--help"} & set(sys.argv):
    server.start()  # it needs as long as the imports below

from prefect import flow, get_run_logger, tags
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State

from flows import challenge, console, history, inherit, news, outcome, plan, promote, sources, versions
from flows.lifecycle import lifecycle
from stages.lib.frame import gates, params
from stages.lib.frame.errors import UserError, command
from stages.lib.frame.params import Tree


@flow(name="retrain", persist_result=False)
def retrain() -> State:
    """Refresh the data, bring everything up to date, and let the new model challenge the champion."""
    log = get_run_logger().info
    with history.alone(wait=True):
        history.close_killed()
        history.drop_waiting()
        tree = params.read()
        for target, origin in sources.read(tree).items():
            log(f"{target}: {'new from' if sources.refresh(target, origin) else 'nothing new in'} {origin}")
        inherit.provide(tree, renew=True)
        data = [section for section in params.sections("data") if tree.get(section)]
        state = lifecycle(data, offer=False, return_state=True)
        if state.is_completed():
            try:
                rows = profile(tree)
            except UserError as error:  # nothing that follows needs it
                rows = []
                log(f"what is new in the data can't be told: {error}")
            for row in rows:
                log(", ".join(f"{key} {value}" for key, value in row.items()))
            create_table_artifact(rows, key="new-data", description="the data since the champion was made")
            state = lifecycle(return_state=True)
        return state


def profile(tree: Tree) -> list[dict[str, str | int]]:
    """A row for each folder of records that has changed since the champion was made."""
    gate = gates.read(tree)
    champions = versions.champions(promote.registry_name(gate.model)) if gate else []
    if not champions:
        return []
    with versions.then(champions[-1]) as then:
        known, now = then.records(), plan.outputs()
        changed = [folder for folder in challenge.folders(tree) if known.get(str(folder)) != now[str(folder)]]
        return [compared(folder, news.since(then, folder)) for folder in changed if str(folder) in known]


def compared(folder: Path, since: news.News) -> dict[str, str | int]:
    found = since.drift()
    kind = f"{'another' if found.found else 'the same'} (AUC {found.auc:.2f}, p {found.p_value:.2g})" if found else "?"
    return {"data": folder.parent.name, "new rows": len(since.new), "rows gone": since.gone, "kind": kind}


def main() -> None:
    """Run it here and now."""
    console.begin()
    with tags(str(Path.cwd())):
        state = retrain(return_state=True)
    history.wait_until_recorded(state.state_details.flow_run_id, 0)
    if not state.is_completed():
        raise UserError(state.message)
    print(outcome.show(params.read()))


if __name__ == "__main__":
    command(main)
