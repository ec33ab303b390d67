"""The model registry and its gates: params.yaml says what an export must keep to be registered.

python -m flows.promote     register what lies in artifacts, or say why not

Every evaluated export that passes is registered as candidate. The one that ships, and its source, become champion at
the end of a flow if they are not worse than the champion (flows/challenge.py) and were not rolled back; by this command
in any case. A flow offers what was not offered yet, whoever made it: it, `dvc repro`, or a flow that was killed.

What git knows to be registered (flows/versions.py) is registered again where MLflow's registry has lost it.
"""

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from flows import challenge, plan, versions, webhook
from flows.versions import Version
from stages.lib.frame import files, gates, params, sqlite, tracking
from stages.lib.frame.errors import UserError, command
from stages.lib.frame.params import CHAMPION, Tree

ARTIFACTS = Path("artifacts")
OFFERED = Path(".dvc/tmp/offered.json")  # the identity of what was offered last
Standing = Literal["champion", "candidate", "refused"]


@dataclass(frozen=True)
class Verdict:
    """What the gates say to one export."""

    export: str
    name: str  # under which eval measures it
    standing: Standing
    reasons: list[str]  # why it is refused, or no champion; how it compares with the champion
    final: bool = True  # else the next flow offers it again


def judge(tree: Tree, by_hand: bool = False) -> list[Verdict]:
    """A verdict on every export that was made and evaluated, the one that ships last. `by_hand`: what passes may be
    champion whatever was champion before."""
    gate = gates.read(tree)
    if gate is None or not measured(tree, gate.teacher):
        return []
    exports = gates.measured(tree)
    exports.pop(gate.model, None)
    exports[gate.model] = gate.student
    found, lock = [], plan.lock()
    for export, name in ((export, name) for export, name in exports.items() if made(export) and measured(tree, name)):
        teacher, student = evaluated(tree, gate.teacher), evaluated(tree, name)
        reasons = gates.refusals(gate, teacher, student, kl(export))
        earlier = outdated(tree, export, name, lock)
        reasons += [f"{measure} was measured of an earlier {export}: make run" for measure in earlier]
        standing = "refused" if reasons else "champion" if export == gate.model else "candidate"
        verdict = Verdict(export, name, standing, reasons)
        found.append(challenged(verdict, tree, gate.margin) if standing == "champion" and not by_hand else verdict)
    return found


def challenged(verdict: Verdict, tree: Tree, margin: float) -> Verdict:
    """Whether what the gates let pass may take the champion's place, and why, or why not."""
    by_hand = "python -m flows.promote makes it champion"
    version = at(verdict.export)
    standing, fallen = versions.reign(version.name)
    if version in fallen:
        return replace(verdict, standing="candidate", reasons=[f"it was champion and rolled back; {by_hand}"])
    if not standing or standing[-1] == version:
        return verdict
    try:
        found = challenge.meet(standing[-1], version, tree)
    except challenge.Unevaluated:
        raise
    except UserError as error:  # not here, or not today
        reason = f"it could not be compared with the champion, for {error}; {by_hand}"
        return replace(verdict, standing="candidate", reasons=[reason], final=False)
    now = found.standing(margin)
    return replace(verdict, standing=now, reasons=[str(found), *([] if now == "champion" else [by_hand])])


def offer(by_hand: bool = False) -> list[str]:
    """Register what the gates let pass; a line for every export."""
    tree, made = params.read(), locked()
    verdicts = judge(tree, by_hand)
    if verdicts:
        restore()
    said = [*(admit(tree, verdict) for verdict in verdicts), *announce(tree, verdicts)]
    if all(verdict.final for verdict in verdicts):
        with files.writing(OFFERED) as beside:
            beside.write_bytes(identity(made))
    return said


def due() -> bool:
    """Whether what lies here has not been offered yet."""
    return not OFFERED.is_file() or OFFERED.read_bytes() != identity(locked())


def locked() -> str | None:
    return files.digest(lock) if (lock := Path("dvc.lock")).is_file() else None


def identity(made: str | None) -> bytes:
    """Of what was made, the gates that it has to pass, and the registry: another file of that name is another one."""
    store = sqlite.place(tracking.store())
    registry = [tracking.store(), store.stat().st_ino if store and store.exists() else None]
    offered = {"made": made, "gates": params.read().get("gates"), "registry": registry}
    return json.dumps(offered, sort_keys=True).encode()


def restore() -> None:
    """Register anew what git knows and the registry does not: it was begun anew, or is another machine's."""
    known = tracking.all_registered()
    lost = [version for version in versions.kept() if (Path(version.path), version.sha256) not in known]
    for version in lost:
        tracking.register(version.name, Path(version.path), version.sha256, {})
    for name in dict.fromkeys(version.name for version in lost):
        for version in versions.champions(name)[-1:]:
            tracking.set_alias(name, CHAMPION, version.sha256)


def announce(tree: Tree, verdicts: list[Verdict]) -> list[str]:
    """Tell the webhook of the export that ships; what went wrong with that."""
    found = []
    for verdict in (each for each in verdicts if webhook.wanted() and each.export == tree["gates"]["model"]):
        version = at(verdict.export)
        about = {**asdict(version), "standing": verdict.standing, "reasons": verdict.reasons}
        found.append(webhook.send(f"model.{verdict.standing}", f"{version.tag}-{verdict.standing}", about))
    return [line for line in found if line]


def admit(tree: Tree, verdict: Verdict) -> str:
    said = "; ".join(verdict.reasons)
    if verdict.standing == "refused":
        return f"{verdict.export} is refused: {said}"
    version, accuracy = at(verdict.export), evaluated(tree, verdict.name)["accuracy"]
    number = register(version, {"kl": f"{kl(verdict.export):.4g}", "accuracy": f"{accuracy:.4g}", "said": said})
    if verdict.standing == "champion":
        stage, variant = verdict.export.split("/", 1)
        source = at(tree[stage][variant]["model"], f"{version.name}-source")
        register(source, {})
        crown(version, source)
    return f"{verdict.export} is {verdict.standing}: {version.name} version {number}{f' ({said})' if said else ''}"


def crown(export: Version, source: Version, rollback: bool = False) -> None:
    """In git, and in the registry where there is one."""
    versions.crown(export, source, rollback)
    for each in (export, source) if tracking.present() else ():
        tracking.set_alias(each.name, CHAMPION, each.sha256)


def at(model: str, name: str = "") -> Version:
    """What lies there now, under the name that an export has in the registry."""
    path = ARTIFACTS / model / "model"
    return Version(name or registry_name(model), str(path), files.digest(path))


def registry_name(export: str) -> str:
    return f"orchard-{export.split('/', 1)[1]}"


def register(version: Version, tags: dict[str, str]) -> str:
    versions.keep(version)
    return tracking.register(version.name, Path(version.path), version.sha256, tags)


def kl(export: str) -> float:
    return files.read_json(ARTIFACTS / export / "metrics.json")["kl"]


def made(variant: str) -> bool:
    """A flow may have had other targets."""
    return (ARTIFACTS / variant / "metrics.json").is_file()


def outdated(tree: Tree, export: str, name: str, lock: dict[str, Any]) -> list[str]:
    """Measures of what lay there before, by dvc.lock: a flow may have had other targets."""
    stages, path = lock.values(), str(ARTIFACTS / export / "model")
    now = {out["md5"] for stage in stages for out in stage.get("outs", []) if out["path"] == path}
    then = {
        out["path"]: dep["md5"]
        for stage in stages
        for dep in stage.get("deps", [])
        if dep["path"] == path
        for out in stage.get("outs", [])
    }
    places = {measure: str(ARTIFACTS / "eval" / name / measure / "metrics.json") for measure in measures(tree, name)}
    return [measure for measure, place in places.items() if place in then and then[place] not in now]


def measured(tree: Tree, name: str) -> bool:
    """Whether a model has been put to every measure."""
    return all(made(f"eval/{name}/{measure}") for measure in measures(tree, name))


def measures(tree: Tree, name: str) -> list[str]:
    """Those that a model is put to: some name the models that they measure."""
    return [measure for measure, p in params.variants(tree, "eval").items() if name in p.get("models", [name])]


def evaluated(tree: Tree, name: str, file: str = "metrics.json") -> dict[str, Any]:
    """What eval says of a model, the numbers of all its measures; no two measures use one name."""
    places = [ARTIFACTS / "eval" / name / measure / file for measure in measures(tree, name)]
    return {key: value for place in places if place.is_file() for key, value in files.read_json(place).items()}


def main() -> None:
    print("\n".join(offer(by_hand=True) or [f"{params.PARAMS_FILE} has no gates, or nothing was evaluated yet"]))
    verdicts = judge(params.read(), by_hand=True)
    sys.exit(not verdicts or verdicts[-1].standing != "champion")


if __name__ == "__main__":
    command(main)
