"""How far a reward model may be followed before what it likes is no longer right: what profile `proxy` has made.

make run PROFILE=proxy && python -m benchmarks.proxy --picture docs/proxy.svg

The peer is the verifier, which knows what is right and was told to nobody. Learning from the proxy: its word and the
share that is right over the distance from the start, sqrt(KL), nats a reply, in windows of the curve of three seeds.
Choosing by it: the best of N, whose distance is log N - (N - 1) / N (Gao et al. 2022, arXiv:2210.10760, section 2).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import altair as alt
import cyclopts

from benchmarks import _result
from benchmarks.reason import curve
from stages.lib.frame import files
from stages.report.parts import charts

RESULT = Path("benchmarks/results/proxy.json")
SEEDS, WINDOW = range(3), 10


def main(*, out: Path = RESULT, picture: Path | None = None) -> None:
    found: dict[str, Any] = {}
    curves = [curve(f"proxy-{seed}") for seed in SEEDS]
    print("learning from it: steps, sqrt(KL), proxy, right (least and largest seed)")
    for first in range(0, min(map(len, curves)), WINDOW):
        windows = [rows[first : first + WINDOW] for rows in curves]
        told = {
            "sqrt_kl": mean(math.sqrt(row["kl"] * row["length"]) for rows in windows for row in rows),
            "proxy": mean(row["reward"] for rows in windows for row in rows),
            "right": mean(row["right"] for rows in windows for row in rows),
            "right_least_seed": min(mean(row["right"] for row in rows) for rows in windows),
            "right_largest_seed": max(mean(row["right"] for row in rows) for rows in windows),
        }
        print(f"{first + 1:5}-{first + WINDOW:<5}" + "".join(f"{value:8.3f}" for value in told.values()))
        found |= {f"step_{first + 1}_{name}": value for name, value in told.items()}
    print("choosing by it: N, sqrt(KL), best, majority, oracle")
    scored = [files.read_json(Path(f"artifacts/traces/scored-{seed}/metrics.json")) for seed in SEEDS]
    size = 1
    while f"best_of_{size}" in scored[0]:
        told = {"sqrt_kl": math.sqrt(math.log(size) - (size - 1) / size)}
        told |= {name: mean(each[f"{name}_of_{size}"] for each in scored) for name in ("best", "majority", "oracle")}
        print(f"{size:11}" + "".join(f"{value:8.3f}" for value in told.values()))
        found |= {f"of_{size}_{name}": value for name, value in told.items()}
        size *= 2
    for name in ("start", *(f"proxy-{seed}" for seed in SEEDS)):
        measured = files.read_json(Path(f"artifacts/eval/{name}/accuracy/metrics.json"))["accuracy"]
        found[f"{name.replace('-', '_')}_accuracy"] = measured
    for seed in SEEDS:
        metrics = files.read_json(Path(f"artifacts/align/judge-{seed}/metrics.json"))
        found |= {f"judge_{seed}_{name}": value for name, value in metrics.items()}
    _result.save(out, found, "torch", "transformers")
    if picture:
        charts.write_svg(picture, drawn(found))


def drawn(found: Mapping[str, Any]) -> charts.Chart:
    """What it says and what is right, over the distance from the start; the band: least and largest seed."""
    steps = [name.removesuffix("_sqrt_kl") for name in found if name.startswith("step_") and name.endswith("_sqrt_kl")]
    points = [
        {"far": found[f"{step}_sqrt_kl"], "says": found[f"{step}_proxy"], "right": found[f"{step}_right"]}
        | {end: found[f"{step}_right_{end}_seed"] for end in ("least", "largest")}
        for step in steps
    ]
    title = "distance from the start: square root of the KL, nats a reply"
    far = alt.X("far:Q", title=title, axis=alt.Axis(tickCount=8), scale=alt.Scale(zero=True))
    axis = alt.Axis(format=".0%", title="what the reward model says, and what is right")
    base = alt.Chart(charts.inline(points)).encode(x=far)
    lines = [
        base.mark_line(color=f"var(--{colour})", strokeWidth=2.5).encode(
            y=alt.Y(f"{name}:Q", axis=axis, scale=alt.Scale(domain=[0, 1]))
        )
        for name, colour in (("says", "distilled"), ("right", "accent"))
    ]
    words = [
        base.transform_filter(alt.datum.far == points[-1]["far"])
        .mark_text(color=f"var(--{colour})", align="right", dy=-12, fontSize=13)
        .encode(y=f"{name}:Q", text=alt.value(text))
        for name, colour, text in (("says", "distilled", "the reward model's word"), ("right", "accent", "right"))
    ]
    band = base.mark_area(color="var(--accent)", opacity=0.15).encode(y="least:Q", y2="largest:Q")
    return charts.themed(alt.layer(band, *lines, *words).properties(height=300))


if __name__ == "__main__":
    cyclopts.run(main)
