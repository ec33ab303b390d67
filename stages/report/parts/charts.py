"""The charts, by Vega-Altair: one specification is interactive in the page and a static SVG in the README.

Colours are CSS variables of colours.css, so that the same chart suits light and dark. Names of points are placed by
Vega's own label transform, which leaves out those without room; Vega-Lite does not know it, so `vega` adds it to the
compiled specification. https://vega.github.io/vega/docs/transforms/label
"""

from collections.abc import Callable, Iterable
from math import ceil, floor, log10
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert
from altair.utils.schemapi import debug_mode

from stages.lib.frame import files
from stages.report.parts import numbers

READS = ("colours.css",)
COLOURS = Path(__file__).with_name("colours.css")

MADE = {  # stage -> how its models are called in the legend
    "pretrain": "trained",
    "align": "trained",
    "distill": "distilled",
    "prune": "pruned",
    "quantize": "quantized",
    "export": "exported",
}
COMPRESSED = ("pruned", "quantized", "exported")  # these have a source to be compared with
KINDS = list(dict.fromkeys(MADE.values()))
COLOUR = alt.Scale(domain=KINDS, range=[f"var(--{kind})" for kind in KINDS])
TOOLTIP = {  # field of a point -> its title
    "model": "model",
    "file": "file",
    "accuracy_words": "accuracy (95 % interval)",
    "bits_per_byte": "bits per byte",
    "kl": "KL to its source",
    "decode": "tokens per second",
}
PLACES = ["top-left", "left", "bottom-right", "right", "top", "bottom", "top-right", "bottom-left"]  # the best first
LABELS = {
    "type": "label",
    "size": {"signal": "[width, height]"},
    "anchor": PLACES,
    "offset": [13 if "-" in place else 10 for place in PLACES],  # pixels from the middle of the dot
    "sort": {"field": "datum.priority", "order": "descending"},
}
PRIORITY = {"shipped": 3, "teacher": 2}  # who has a name where there is little room; then the front
CURVE_POINTS = 300  # of one line, about as many as its chart has pixels
WIDTH = 900  # of a static picture
FONT = "system-ui, Helvetica, Arial, sans-serif"

LEGEND = {  # above the title of the y axis
    **{
        "orient": "top",
        "offset": 30,
        "symbolOpacity": 1,
        "symbolStrokeWidth": 2,
        "columns": alt.expr("width < 400 ? 3 : 6"),
    },
    **{"labelColor": "var(--soft)", "labelFontSize": 12},
}

Row = dict[str, Any]  # a model of the summary with its timings and its role: teacher, shipped or other
Chart = alt.Chart | alt.LayerChart | alt.FacetChart


def pareto(rows: list[Row]) -> Chart:
    """Accuracy against bytes (logarithmic), with intervals; the line joins the models that none beats in both."""
    rows = [row for row in rows if row["bytes"] and row["accuracy"] is not None]
    domain, note = axis_begin([row["accuracy_low"] for row in rows], [row["accuracy_high"] for row in rows], percent)
    accuracy = alt.Axis(format=".0%", title=f"accuracy on unseen problems{note}")
    y = alt.Y("accuracy:Q", scale=alt.Scale(domain=domain, nice=False), axis=accuracy)
    made = alt.selection_point(fields=["made"], bind="legend")
    base = alt.Chart(inline(points(rows))).encode(x=bytes_axis(rows), y=y)

    front = base.mark_line(interpolate="step-after", color="var(--accent)", opacity=0.4, aria=False)
    intervals = base.mark_rule(color="var(--soft)", opacity=0.45, aria=False).encode(y="low:Q", y2="high:Q")
    dots = (
        base.mark_point(filled=True, opacity=1, stroke="var(--paper)", strokeWidth=1.5)
        .encode(
            color=alt.Color("made:N", scale=COLOUR, sort=KINDS, title=None),
            size=alt.Size("role:N", scale=alt.Scale(domain=["main", "other"], range=[190, 80]), legend=None),
            opacity=alt.when(made).then(alt.value(1)).otherwise(alt.value(0.12)),
            tooltip=[alt.Tooltip(f"{field}:N", title=title) for field, title in TOOLTIP.items()],
            description="model:N",
        )
        .add_params(made)
    )
    chart = alt.layer(front.transform_filter("datum.on_front"), intervals, dots, names(base))
    return themed(chart.properties(width="container", height=400))


def costs(rows: list[Row]) -> list[Chart]:
    """Small multiples over the same bytes: what else changes with size. What nobody measured has no chart."""
    wanted = (
        ("bits per byte of unseen text", lambda row: row["bits_per_byte"], numbers.brief, ""),
        ("tokens per second", lambda row: row["timings"].get("decode_tokens_per_second"), numbers.brief, ""),
        ("energy per token", lambda row: row["timings"].get("joules_per_token"), numbers.joules, "J"),
        ("peak memory", lambda row: row["timings"].get("peak_memory_bytes"), numbers.size, "B"),
    )
    found = []
    for title, value, show, unit in wanted:
        measured = [row for row in rows if row["bytes"] and value(row) is not None]
        if measured:
            found.append(cost(title, measured, value, show, unit))
    return found


def cost(
    title: str,
    rows: list[Row],
    value: Callable[[Row], float],
    show: Callable[[float], str],
    unit: str,
) -> Chart:
    """One measure over bytes; teacher and shipped model carry their value."""
    data = points(rows)
    for point, row in zip(data, rows, strict=True):
        main = point["role"] == "main"
        point |= {"value": value(row), "words": show(value(row)), "label": show(value(row)) if main else ""}
    amounts = [value(row) for row in rows]
    domain, note = axis_begin(amounts, amounts, show)
    y = alt.Y("value:Q", scale=alt.Scale(domain=domain, nice=False), axis=unit_axis(unit, title=title + note))
    base = alt.Chart(inline(data)).encode(x=bytes_axis(rows), y=y)
    tooltip = ("model", "model"), ("file", "file"), ("words", title)
    dots = base.mark_point(filled=True, opacity=1, stroke="var(--paper)", strokeWidth=1).encode(
        color=alt.Color("made:N", scale=COLOUR, legend=None),
        size=alt.Size("role:N", scale=alt.Scale(domain=["main", "other"], range=[120, 60]), legend=None),
        tooltip=[alt.Tooltip(f"{field}:N", title=words) for field, words in tooltip],
        description="model:N",
    )
    return themed(alt.layer(dots, names(base)).properties(width="container", height=180))


def curve(losses: dict[str, list[tuple[float, float]]]) -> Chart | None:
    """Losses over the steps of a training, (step, value) by name; the legend says where each ended."""
    losses = {name: thinned(line) for name, line in losses.items() if len(line) > 1}
    if not losses:
        return None
    called = {
        name: f"{name.replace('_', ' ')}, {numbers.brief(line[-1][1])} at the end" for name, line in losses.items()
    }
    data = [
        {"loss": called[name], "step": step, "value": float(f"{value:.4g}")}
        for name, line in losses.items()
        for step, value in line
    ]
    values = [point["value"] for point in data]
    domain, note = axis_begin(values, values, numbers.brief)
    held_out = [name for name in called if "held_out" in name] or list(called)[:1]  # what stands out
    order = [called[name] for name in sorted(called, key=lambda name: name not in held_out)]
    colours = [
        "var(--accent)",
        "var(--soft)",
        "var(--distilled)",
        "var(--quantized)",
        "var(--pruned)",
        "var(--trained)",
    ]
    lines = (
        alt.Chart(inline(data))
        .mark_line(strokeWidth=1.5, point={"size": 14} if len(data) < 60 else False)
        .encode(
            x=alt.X("step:Q", title="step", axis=alt.Axis(grid=False, tickCount=5)),
            y=alt.Y(
                "value:Q", title=f"loss{note}", scale=alt.Scale(domain=domain, nice=False), axis=alt.Axis(tickCount=4)
            ),
            color=alt.Color(
                "loss:N", title=None, sort=order, scale=alt.Scale(domain=order, range=colours[: len(order)])
            ),
            tooltip=[alt.Tooltip("loss:N", title="loss"), alt.Tooltip("step:Q"), alt.Tooltip("value:Q")],
        )
    )
    legend = {"direction": "vertical", "labelLimit": 400, "symbolType": "stroke"}
    return themed(lines.properties(width="container", height=150), **legend)


def points(rows: list[Row]) -> list[dict[str, Any]]:
    """What the charts know of every model; words are the same as in the page's tables."""
    best = front(rows)
    return [
        {
            "model": row["variant"],
            "label": row["variant"],
            "made": MADE[stage],
            "bytes": row["bytes"],
            "file": numbers.size(row["bytes"]),
            "accuracy": row["accuracy"],
            "low": row["accuracy_low"],
            "high": row["accuracy_high"],
            "accuracy_words": numbers.with_interval(row["accuracy"], row["accuracy_low"], row["accuracy_high"]),
            "bits_per_byte": numbers.brief(row["bits_per_byte"]),
            "kl": numbers.brief(row["kl"]) if MADE[stage] in COMPRESSED else "none, it was trained",
            "decode": numbers.brief(row["timings"].get("decode_tokens_per_second")),
            "role": "other" if row["role"] == "other" else "main",
            "on_front": row in best,
            "priority": PRIORITY.get(row["role"], int(row in best)),
        }
        for row in rows
        for stage in [row["model"].partition("/")[0]]
    ]


def inline(values: list[dict[str, Any]]) -> alt.Data:
    """Data within a chart. Checking row after row against Vega-Lite's schema would take most of the report's time."""
    with debug_mode(False):
        return alt.Data(values=values)


def front(rows: Iterable[Row]) -> list[Row]:
    """The models that no other beats in both size and accuracy."""
    known = [row for row in rows if row["bytes"] and row["accuracy"] is not None]
    return [row for row in known if not any(beats(other, row) for other in known)]


def beats(a: Row, b: Row) -> bool:
    """No larger, no worse, and better in one."""
    no_worse = a["bytes"] <= b["bytes"] and a["accuracy"] >= b["accuracy"]
    return no_worse and (a["bytes"], a["accuracy"]) != (b["bytes"], b["accuracy"])


def names(base: alt.Chart) -> alt.Chart:
    """The label of every point that has one; `vega` finds places for them."""
    bold = alt.expr("datum.role == 'main' ? 'bold' : 'normal'")
    return base.mark_text(fontWeight=bold, fontSize=12, color="var(--ink)", aria=False).encode(text="label:N")


def bytes_axis(rows: list[Row]) -> alt.X:
    """Logarithmic, marked at 1, 2, 5, 10 and so on of a unit."""
    sizes = [row["bytes"] for row in rows] or [1e6]
    low, high = min(sizes) / 1.2, max(sizes) * 1.2
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    marks = [digit * 10**power for power in decades for digit in (1, 2, 5) if low <= digit * 10**power <= high]
    axis = unit_axis("B", title="size of the weights file, logarithmic", values=marks)
    return alt.X("bytes:Q", scale=alt.Scale(type="log", domain=[low, high], nice=False), axis=axis)


def unit_axis(unit: str, **more: Any) -> alt.Axis:
    """An axis of large or small amounts: 500 kB, 2 MB, 6 mJ; without unit 6,000 and 3.8."""
    with_prefix = rf"replace(format(datum.value, '~s'), /(\d)(\D?)$/, '$1 $2{unit}')"
    return alt.Axis(
        labelExpr=with_prefix if unit else "format(datum.value, ',.6~g')", tickCount=5, labelOverlap="greedy", **more
    )


def axis_begin(lows: list[float], highs: list[float], show: Callable[[float], str]) -> tuple[list[float], str]:
    """(domain, what its title must say): from 0, unless that would leave more than half of the chart empty."""
    low, high = min(lows, default=0.0), max(highs, default=1.0)
    if low <= high / 2:
        return [0.0, (high or 1.0) * 1.04], ""
    step = 10.0 ** floor(log10(high - low or high))
    begin = floor(low / step) * step
    begin = round(begin if begin < low else begin - step, 12)
    return [begin, high + 0.04 * (high - begin)], f" (axis begins at {show(begin)})" if begin else ""


def percent(share: float) -> str:
    return f"{share:.0%}".replace("%", "\u00a0%")


def thinned(line: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Every n-th point of a long line, its last one in any case."""
    every = ceil(len(line) / CURVE_POINTS)
    return line[::-1][::every][::-1]


def themed(chart: Chart, **legend: Any) -> Chart:
    text = {"labelColor": "var(--soft)", "titleColor": "var(--ink)", "labelFontSize": 12, "titleFontSize": 12}
    lines = {"domainColor": "var(--rule)", "tickColor": "var(--rule)", "gridColor": "var(--rule)"}
    titles = {"titleFontWeight": "normal", "titlePadding": 10, "titleLimit": 640}
    above = {"titleAngle": 0, "titleAlign": "left", "titleAnchor": "start", "titleX": 0, "titleY": -12}
    return (
        chart.configure(background="transparent", font=FONT, padding=4)
        .configure_view(stroke=None)
        .configure_axis(**text, **lines, **titles)
        .configure_axisX(grid=False)
        .configure_axisY(domain=False, ticks=False, labelPadding=8, **above)
        .configure_legend(**(LEGEND | legend))
    )


def vega(chart: Chart, in_browser: bool = True) -> dict[str, Any]:
    """The specification compiled from Vega-Lite to Vega, and its labels placed without overlaps.

    A browser can draw the dots' shapes on a canvas, so that labels avoid all of them; elsewhere they avoid the centres.
    """
    spec = vl_convert.vegalite_to_vega(chart.to_dict(validate=False))
    dots = [mark["name"] for mark in spec["marks"] if mark["type"] == "symbol"]
    for mark in spec["marks"]:
        if mark["type"] == "text":
            mark["transform"] = [LABELS | ({"avoidMarks": dots} if in_browser else {})]
    return spec


def write_svg(path: Path, chart: Chart) -> None:
    """The chart as a picture that brings its colours along."""
    spec = vega(chart.properties(width=WIDTH), in_browser=False)
    picture = vl_convert.vega_to_svg(spec | {"background": "var(--paper)", "padding": 20})
    colours = COLOURS.read_text(encoding="utf-8")
    with files.writing(path) as temporary:
        temporary.write_text(picture.replace(">", f">\n<style>\n{colours}</style>\n", 1), encoding="utf-8")
