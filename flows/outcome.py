"""How a run ended, for a person: what every model is worth, which one ships and where it is, what to do next."""

from collections.abc import Iterator
from typing import Any

from flows.promote import ARTIFACTS, Verdict, evaluated, judge
from stages.lib.frame import gates, params
from stages.lib.frame.params import Tree

REPORT, SUMMARY = ARTIFACTS / "report/report.html", ARTIFACTS / "report/summary.json"
NAME = 25  # columns for a model's name
ROW = f"{{:{NAME}}} {{:>8}}  {{:16}} {{:>5}} {{:>9}}  {{}}"  # 79 columns with the longest standing, "candidate"


def show(tree: Tree) -> str:
    gate, verdicts = gates.read(tree), judge(tree)
    lines = [*table(tree, gate.teacher if gate else None, verdicts), ""]
    for verdict in verdicts:
        if gate and verdict.export == gate.model and verdict.reasons:
            lines += [f"{verdict.export} is {verdict.standing}:", *(f"  {reason}" for reason in verdict.reasons), ""]
    after = ["make ui (all runs, in a browser)"]
    if gate and (model := ARTIFACTS / gate.model / "model").is_dir():
        lines.append(f"model that ships  {model}")
        if (model / "model.gguf").is_file():
            after.insert(0, "make chat (talk to it)")
    if REPORT.is_file():
        lines.append(f"report            {REPORT}")
    return "\n".join([*lines, f"next              {', '.join(after)}"])


def table(tree: Tree, teacher: str | None, verdicts: list[Verdict]) -> Iterator[str]:
    """A line for every model that was evaluated."""
    measured = {name: found for name in params.models(tree) if (found := evaluated(tree, name))}
    if not measured:
        return
    standing = {verdict.name: verdict.standing for verdict in verdicts}
    accuracy = measured.get(teacher or next(iter(measured)), {}).get("accuracy")
    yield ROW.format("model", "MB", "accuracy (95 %)", "kept", "tokens/s", "registry" if verdicts else "").rstrip()
    for name, metrics in measured.items():
        yield row(name, metrics, accuracy, evaluated(tree, name, "timings.json"), standing.get(name, ""))


def row(name: str, metrics: dict[str, Any], teacher: float | None, timings: dict[str, Any], standing: str) -> str:
    size = f"{metrics['bytes'] / 1e6:,.2f}" if "bytes" in metrics else ""
    accuracy = kept = ""
    if "accuracy" in metrics:
        accuracy = f"{metrics['accuracy']:.1%}"
        if "accuracy_low" in metrics:
            accuracy += f" ({100 * metrics['accuracy_low']:.0f}-{100 * metrics['accuracy_high']:.0f})"
        kept = f"{metrics['accuracy'] / teacher:.0%}" if teacher else ""
    speed = f"{timings['decode_tokens_per_second']:,.0f}" if "decode_tokens_per_second" in timings else ""
    return ROW.format(shortened(name), size, accuracy, kept, speed, standing).rstrip()


def shortened(name: str) -> str:
    return name if len(name) <= NAME else f"{name[: NAME - 1]}…"
