"""Champion and challenger on the same problems: may the model that was made just now take the champion's place?

Both answer what eval asks, and of the data that came since the champion as many held-out problems again, or all of
them where the new texts are of another kind (flows/drift.py). What either may have been trained on is left out. Both
are right or wrong on each problem, so what counts are those that only one of them has right: an exact test (McNemar
1947), and the interval of Agresti and Min (2005, Statistics in Medicine 24(5), section 3).
"""

import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Any, Literal

from flows import news, plan, versions
from flows.drift import Drift
from flows.news import News
from flows.versions import Version
from stages.lib.frame import files, params
from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Tree
from stages.lib.store import records
from stages.lib.store.records import Record
from stages.lib.text import chat

ARTIFACTS = Path("artifacts")
PLACE, MEASURE, ANSWER = ARTIFACTS / "challenge", "accuracy", "comparison.json"
CODE = Path(plan.CODE, "eval", f"{MEASURE}.json")
Z = 1.959964  # 95 %


class Unevaluated(UserError):
    """A model that is here could not be put to the test: the disk was full, or it ran out of memory."""


@dataclass(frozen=True)
class Paired:
    """Two models on the same problems."""

    problems: int
    champion: float  # share that it has right
    challenger: float
    low: float  # of challenger less champion, 95 %
    high: float
    p_value: float  # of both being equally good, two-sided

    def __str__(self) -> str:
        difference = self.challenger - self.champion
        return (
            f"{self.challenger:.1%} of {self.problems} problems right where the champion has {self.champion:.1%}: "
            f"{100 * difference:+.1f} points ({100 * self.low:+.1f} to {100 * self.high:+.1f}, p {self.p_value:.2g})"
        )


@dataclass(frozen=True)
class Comparison:
    """`fresh`: on the problems that came since the champion, if any; `drift`: of all rows that came since."""

    overall: Paired
    fresh: Paired | None = None
    drift: Drift | None = None

    def standing(self, margin: float) -> Literal["champion", "candidate", "refused"]:
        """`margin`: of accuracy, what the challenger may be worse at most, for certain."""
        if self.overall.low >= -margin:
            return "champion"
        return "refused" if self.overall.high < 0 else "candidate"

    def __str__(self) -> str:
        parts = [str(self.overall)]
        if self.fresh:
            parts.append(f"on new data {self.fresh}")
        if self.drift and self.drift.found:
            parts.append(f"the new data are of another kind (AUC {self.drift.auc:.2f}, p {self.drift.p_value:.2g})")
        return "; ".join(parts)


def paired(champion: list[bool], challenger: list[bool]) -> Paired:
    from scipy.stats import binomtest

    number = len(champion)
    cells = Counter(zip(champion, challenger, strict=True))
    lost, won = cells[True, False], cells[False, True]
    p_value = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    difference = (won - lost) / (number + 2)
    wide = Z * sqrt((won + lost + 1) / (number + 2) - difference**2) / sqrt(number + 2)
    shares = sum(champion) / number, sum(challenger) / number
    return Paired(number, *shares, difference - wide, difference + wide, p_value)


def meet(champion: Version, challenger: Version, tree: Tree) -> Comparison:
    """Refuses where the champion's files or data can't be had. What was compared once is not compared again.

    Raises:
        Unevaluated: what another try may mend.
    """
    asked, folder = identity(champion, challenger, tree), PLACE / challenger.name
    if whole(folder) and (known := files.read_json(folder / ANSWER))["asked"] == asked:
        return read(known["comparison"])
    common, fresh, drifted = problems(champion, tree)
    if not common and not fresh:
        raise UserError("no held-out problem is left that neither it nor the champion may have been trained on")
    forget(folder)
    with files.writing(folder / "records") as beside:
        records.save(beside, held_out=[row | {"id": str(number)} for number, row in enumerate([*common, *fresh])])
    models = {"champion": versions.at_hand(champion), "challenger": Path(challenger.path)}
    right = [marks(name, model, folder, tree) for name, model in models.items()]
    found = Comparison(paired(*right), paired(*(each[len(common) :] for each in right)) if fresh else None, drifted)
    files.write_json(folder / ANSWER, {"asked": asked, "comparison": asdict(found)})
    with files.writing(seal(folder)) as file:
        file.write_text(files.digest(folder))
    return found


def seal(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.sha256")


def whole(folder: Path) -> bool:
    """Whether a comparison came to its end there, and nothing has changed since."""
    return folder.is_dir() and seal(folder).is_file() and seal(folder).read_bytes() == files.digest(folder).encode()


def forget(folder: Path) -> None:
    for path in (seal(folder), folder):
        files.remove(path)


def damaged() -> list[Path]:
    """Folders of comparisons that are not whole, which are removed: what is asked again is compared again."""
    paths = [path for path in PLACE.iterdir() if not path.name.startswith(".")] if PLACE.is_dir() else []
    folders = {path.with_name(path.name.removesuffix(".sha256")) for path in paths}
    found = sorted(folder for folder in folders if not whole(folder))
    for folder in found:
        forget(folder)
    return found


def identity(champion: Version, challenger: Version, tree: Tree) -> list[Any]:
    locked = plan.outputs()
    data = [locked.get(str(folder)) for folder in folders(tree)]
    return [champion.sha256, challenger.sha256, data, tree["eval"][MEASURE], files.digest(CODE)]


def read(saved: dict[str, Any]) -> Comparison:
    fresh, drifted = saved["fresh"], saved["drift"]
    return Comparison(Paired(**saved["overall"]), fresh and Paired(**fresh), drifted and Drift(**drifted))


def problems(champion: Version, tree: Tree) -> tuple[list[Record], list[Record], Drift | None]:
    """What eval asks of what was there; of what came since; whether all that came since is of another kind."""
    here = ARTIFACTS / tree["eval"][MEASURE]["records"] / "records"
    limit, held_out = per_family(tree), records.load(here, "held_out")
    with versions.then(champion) as then:
        learnt = news.learnt(then, folders(tree))
        since = news.since(then, here) if str(here) in then.records() else News([], [], 0)
    drifted = since.drift()
    new = set(map(news.text, since.new))
    common = [row for row in first(held_out, limit) if news.text(row) not in new]
    fresh = [row for row in held_out if news.text(row) in new]
    fresh = fresh if drifted and drifted.found else first(fresh, limit)
    common, fresh = ([row for row in rows if chat.plain(row["prompt"]) not in learnt] for rows in (common, fresh))
    return common, fresh, drifted


def first(rows: list[Record], number: int) -> list[Record]:
    """At most `number` of every family."""
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row["family"]] += 1
        if seen[row["family"]] <= number:
            kept.append(row)
    return kept


def per_family(tree: Tree) -> int:
    usual = params.technique_class("eval", MEASURE).model_fields["per_family"].default
    return tree["eval"][MEASURE].get("per_family", usual)


def folders(tree: Tree) -> list[Path]:
    """Of the records that lie here."""
    found = [ARTIFACTS / "data" / name / "records" for name in params.variants(tree, "data")]
    return [folder for folder in found if folder.is_dir()]


def marks(name: str, model: Path, folder: Path, tree: Tree) -> list[bool]:
    """Right or wrong for each of folder/records, as the stage eval finds it."""
    rows = records.load(folder / "records", "held_out")
    own = folder / "params.yaml"  # JSON is YAML
    measures = {**tree["eval"], MEASURE: {**tree["eval"][MEASURE], "per_family": len(rows)}}
    files.write_json(own, {**tree, "eval": measures})
    command = [sys.executable, "-m", "stages.eval", MEASURE, name, "--model", model, "--records", folder / "records"]
    command += ["--code", CODE, "--out", folder / name, "--params-file", own]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        reason = (done.stdout.strip() or "no word").splitlines()[-1]
        raise Unevaluated(f"the {name} could not be evaluated, and nothing is promoted: {reason}")
    right = files.read_json(folder / name / "samples.json")["right"]
    return [right[row["id"]] for row in rows]
