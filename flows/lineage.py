"""From a model back to the raw data, by content hash: across runs, and through stages that were cached.

python -m flows.lineage orchard-gguf-q4_k_m            a registered model (its candidate; name@champion: that alias)
python -m flows.lineage export/gguf-q4_k_m             a variant
python -m flows.lineage artifacts/align/dpo/model      an artefact
python -m flows.lineage MODEL --json                   the same for programs
python -m flows.lineage MODEL --kwh 0.30               and what it cost, at this price of electricity
python -m flows.lineage MODEL --picture lineage.svg    the same to look at (or .png, .html)
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from flows import plan
from flows.plan import CODE
from stages.lib.frame import files, tracking
from stages.lib.frame.errors import UserError, command

ARTIFACTS, PICTURES = Path("artifacts"), (".svg", ".png", ".html")
Content = tuple[str, str]  # path, sha256


@dataclass(frozen=True)
class Artefact:
    """What lay at a path, and where it came from. Without `stage` it is raw: no stage makes it."""

    path: str
    sha256: str
    stage: str = ""  # stage/variant
    run: str = ""  # of MLflow; without one only dvc.lock says what made it
    git: str = ""
    code: str = ""
    spent: dict[str, float] = field(default_factory=dict)  # seconds, joules, tokens, cost
    params: dict[str, str] = field(default_factory=dict)
    inputs: list[Content] = field(default_factory=list)


def find(model: str) -> tuple[Path, str]:
    """Path and sha256 of what the user named."""
    if Path(model).exists():
        return Path(model), files.digest(Path(model))
    if (folder := ARTIFACTS / model).is_dir():
        made = [path for path in sorted(folder.iterdir()) if path.is_dir()] or [folder / "metrics.json"]
        return made[0], files.digest(made[0])
    name, _, alias = model.partition("@")
    if found := tracking.registered(name, alias or "candidate"):
        return found[1], found[2]
    raise UserError(f"'{model}' is no registered model, no variant under {ARTIFACTS} and no path")


def trace(path: Path, sha256: str) -> dict[Content, Artefact]:
    """The artefact and whatever it was made from, each once, parents behind what was made of them."""
    found: dict[Content, Artefact] = {}
    waiting = [(str(path), sha256)]
    while waiting:
        content = waiting.pop()
        if content not in found:
            found[content] = artefact(*content)
            waiting += reversed(found[content].inputs)
    return found


def artefact(path: str, sha256: str) -> Artefact:
    if run := tracking.producer(Path(path), sha256):
        made_by = f"{run.stage}/{run.variant}"
        given = {key: value for key, value in sorted(run.params.items()) if value not in ("None", "")}
        return Artefact(path, sha256, made_by, run.id, commit(run.git), run.code, run.spent, given, run.inputs)
    if entry := locked(Path(path)):
        inputs = [(each, files.digest(Path(each))) for each in entry["inputs"] if Path(each).exists()]
        return Artefact(path, sha256, entry["name"], inputs=inputs)
    return Artefact(path, sha256)


def tree(found: dict[Content, Artefact]) -> Iterator[str]:
    """The artefact, who made it, then the same for each of its inputs; one that was shown is only named again."""
    yield from lines(next(iter(found)), found, set(), "")


def lines(content: Content, found: dict[Content, Artefact], seen: set[Content], indent: str) -> Iterator[str]:
    path, sha256 = content
    yield f"{indent}{path}  sha256 {sha256[:12]}{'  (see above)' if content in seen else ''}"
    if content in seen:
        return
    seen.add(content)
    made, inner = found[content], f"{indent}    "
    if made.run:
        values = "".join(f", {key}={value}" for key, value in made.params.items())
        yield f"{inner}made by {made.stage}, run {made.run[:8]}, git {made.git}{values}"
        yield f"{inner}code {made.code[:12]}{''.join(f', {each}' for each in shown(made.spent))}"
    elif made.stage:
        yield f"{inner}made by {made.stage}; no run of it is recorded here, so this is from dvc.lock"
    else:
        yield f"{inner}raw: no stage makes it"
    for parent in made.inputs:
        yield from lines(parent, found, seen, inner)


def shown(spent: dict[str, float]) -> list[str]:
    """Each with its unit."""
    units = {"seconds": "s", "joules": "J"}
    return [
        f"cost {value:,.4f}" if name == "cost" else f"{value:,.0f} {units.get(name, name.replace('_', ' '))}"
        for name, value in spent.items()
    ]


def in_all(found: dict[Content, Artefact]) -> dict[str, float]:
    """Of every run once, which may have made several of the artefacts."""
    runs = {made.run: made.spent for made in found.values() if made.run}
    names = dict.fromkeys(name for spent in runs.values() for name in spent)
    return {name: sum(spent.get(name, 0) for spent in runs.values()) for name in names}


def draw(found: dict[Content, Artefact], target: Path) -> None:
    """A column for each step from the model back to raw data, an arrow for each input."""
    import altair as alt

    depth: dict[Content, int] = {}
    for content in found:
        settle(content, 0, found, depth)
    columns: dict[int, list[Content]] = {}
    for content in found:
        columns.setdefault(depth[content], []).append(content)
    tallest = max(map(len, columns.values()))
    place = {
        content: (-number, (row + 0.5) * tallest / len(column))
        for number, column in columns.items()
        for row, content in enumerate(column)
    }
    boxes = [
        {"x": place[each][0], "y": place[each][1], "name": made.stage or made.path, "content": made.sha256[:12],
         "kind": "raw" if not made.stage else made.stage.split("/")[0]}
        for each, made in found.items()
    ]  # fmt: skip
    arrows = [
        {"x": place[parent][0], "y": place[parent][1], "x2": place[each][0], "y2": place[each][1]}
        for each, made in found.items()
        for parent in made.inputs
    ]
    x, y = alt.X("x:Q", axis=None, scale=alt.Scale(padding=90)), alt.Y("y:Q", axis=None, scale=alt.Scale(padding=20))
    rules = alt.Chart(alt.Data(values=arrows)).mark_rule(color="#bbb").encode(x=x, y=y, x2="x2:Q", y2="y2:Q")
    points = alt.Chart(alt.Data(values=boxes)).encode(x=x, y=y)
    dots = points.mark_circle(size=120).encode(color=alt.Color("kind:N", title=None), tooltip=["name:N", "content:N"])
    names, contents = (
        points.mark_text(dy=dy, size=size, color=color).encode(text=f"{key}:N")
        for key, dy, size, color in (("name", -12, 11, "black"), ("content", 14, 9, "#777"))
    )
    size = {"width": 190 * len(columns), "height": 55 * tallest + 40}
    with files.writing(target) as partial:
        chart = alt.layer(rules, dots, names, contents).properties(**size)
        chart.save(str(partial), format=target.suffix[1:])  # pyright: ignore[reportArgumentType]  (one of PICTURES)


def settle(content: Content, least: int, found: dict[Content, Artefact], depth: dict[Content, int]) -> None:
    """Its column: one farther than what is made of it."""
    if depth.get(content, -1) < least:
        depth[content] = least
        for parent in found[content].inputs:
            settle(parent, least + 1, found, depth)


def commit(revision: str) -> str:
    return revision if revision == "no git" else f"{revision[:7]}{revision[40:]}"


def locked(path: Path) -> dict[str, Any] | None:
    """The stage of dvc.lock that makes `path`, with what it reads; code is left out."""
    for name, entry in lock().items():
        if str(path) in [out["path"] for out in entry.get("outs", [])]:
            inputs = [dep["path"] for dep in entry.get("deps", []) if not dep["path"].startswith(f"{CODE}/")]
            return {"name": name, "inputs": inputs}
    return None


lock = cache(plan.lock)


def main(
    model: str,
    *,
    json_: Annotated[bool, Parameter("--json")] = False,
    picture: Path | None = None,
    kwh: float = 0,
    million_tokens: float = 0,
) -> None:
    """
    Args:
        model: A registered model, a variant or a path.
        json_: Print all that is known of every artefact.
        picture: Draw it into this .svg, .png or .html.
        kwh: Price of a kilowatt-hour, in any currency.
        million_tokens: Price of a million tokens that an endpoint has written.
    """
    prices = {"joules": kwh / 3.6e6, "completion_tokens": million_tokens / 1e6}
    if picture and picture.suffix not in PICTURES:
        raise UserError(f"--picture is {picture}; its name must end in {', '.join(PICTURES)}")
    found = trace(*find(model))
    for made in found.values():
        if made.run and (kwh or million_tokens):
            made.spent["cost"] = sum(made.spent.get(name, 0) * price for name, price in prices.items())
    if picture:
        draw(found, picture)
    elif json_:
        print(json.dumps([asdict(each) for each in found.values()], indent=2))
    else:
        print("\n".join(tree(found)))
        if spent := in_all(found):
            print(f"in all {', '.join(shown(spent))}")


if __name__ == "__main__":
    command(main)
