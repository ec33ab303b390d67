"""Charts as lists of marks with places; _picture.svg.j2 turns them into SVG. Colours are the page's, by class."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import ceil, floor, log10
from typing import Any, NamedTuple

from stages.report.parts import numbers

SIZE = 13  # of a label, pixels
MOST_COVERED = 60  # square pixels of other things under a label
CROWD = 15  # dots, whose long leaders would cross
Points = list[tuple[float, float]]


class Stroke(NamedTuple):
    kind: str
    points: Points


class Dot(NamedTuple):
    kind: str
    x: float
    y: float
    note: str


class Text(NamedTuple):
    kind: str
    x: float
    y: float
    anchor: str  # start, middle or end
    text: str


@dataclass
class Picture:
    title: str
    width: int
    height: int
    strokes: list[Stroke] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "Box") -> float:
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return wide * high if wide > 0 and high > 0 else 0.0

    def outside(self, area: "Box") -> float:
        return (self.right - self.left) * (self.bottom - self.top) - self.overlap(area)


def pareto(rows: list[dict], teacher: dict, shipped: dict, page: int) -> Picture:
    """Accuracy against bytes (logarithmic), with intervals; the line joins the models that none other beats in both."""
    picture = Picture("Accuracy against file size", page, 430)
    area = Box(46, 34, page - 12, 380)
    at_x = across(rows, area)
    at_y, ticks = up(0, max(row["accuracy_high"] for row in rows), area, 5)
    axes(picture, area, at_x, rows, at_y, [(tick, f"{100 * tick:.0f} %") for tick in ticks])
    picture.texts.append(Text("axis", 4, 16, "start", "accuracy on held-out problems, 95 % interval"))
    picture.texts.append(Text("axis", area.right, 424, "end", "size of the weights file, log scale"))

    best = [row for row in rows if not any(beats(other, row) for other in rows)]
    corners = sorted({(row["bytes"], row["accuracy"]) for row in best})
    steps = [(x, y) for (_, y), (x, _) in zip(corners, corners[1:], strict=False)]
    line = [point for pair in zip(corners, [*steps, corners[-1]], strict=True) for point in pair]
    picture.strokes.append(Stroke("front", [(at_x(x), at_y(y)) for x, y in line]))

    for row in rows:
        x = at_x(row["bytes"])
        picture.strokes.append(Stroke("interval", [(x, at_y(row["accuracy_low"])), (x, at_y(row["accuracy_high"]))]))
        picture.dots.append(Dot(kind(row, teacher, shipped), x, at_y(row["accuracy"]), note(row)))
    named = sorted(zip(picture.dots, rows, strict=True), key=lambda pair: pair[1] not in best)
    label(picture, area, [(dot, row["variant"]) for dot, row in named])
    return picture


def costs(rows: list[dict], teacher: dict, shipped: dict) -> list[Picture]:
    """Small multiples over the same bytes: what else changes with size."""
    wanted = (
        ("bits a byte of held-out text", lambda row: row["bits_per_byte"], numbers.brief),
        ("decode, tokens a second", lambda row: row["timings"].get("decode_tokens_per_second"), numbers.brief),
        ("energy a token", lambda row: row["timings"].get("joules_per_token"), numbers.joules),
        ("peak memory", lambda row: row["timings"].get("peak_memory_bytes"), numbers.size),
    )
    return [cost(title, rows, value, show, teacher, shipped) for title, value, show in wanted]


def cost(title: str, rows: list[dict], value: Callable, show: Callable, teacher: dict, shipped: dict) -> Picture:
    picture = Picture(title, 420, 210)
    area = Box(60, 34, 404, 172)
    picture.texts.append(Text("axis", 4, 16, "start", title))
    rows = [row for row in rows if value(row) is not None]
    if not rows:
        picture.texts.append(Text("axis", 210, 110, "middle", "not measured on this machine"))
        return picture
    at_x = across(rows, area)
    at_y, ticks = up(0, max(map(value, rows)), area, 3)
    axes(picture, area, at_x, rows, at_y, [(tick, show(tick) if tick else "0") for tick in ticks])
    named = []
    for row in rows:
        words = show(value(row))
        dot = Dot(kind(row, teacher, shipped), at_x(row["bytes"]), at_y(value(row)), f"{row['variant']}: {words}")
        picture.dots.append(dot)
        if row in (teacher, shipped):
            named.append((dot, words))
    label(picture, area, named)
    return picture


def curve(lines: dict[str, Points]) -> Picture | None:
    """Losses over steps, each named at its end; the held-out one stands out."""
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return None
    words = {name: f"{name.replace('_', ' ')} {numbers.brief(points[-1][1])}" for name, points in lines.items()}
    picture = Picture("loss over steps", 420, 200)
    area = Box(46, 14, 408 - width(max(words.values(), key=len)), 168)
    values = [y for points in lines.values() for _, y in points]
    at_y, ticks = up(min(values), max(values), area, 3)
    last = max(points[-1][0] for points in lines.values())
    at_x = scale(0, last, area.left, area.right)
    for tick in ticks:
        picture.strokes.append(Stroke("grid", [(area.left, at_y(tick)), (area.right, at_y(tick))]))
        picture.texts.append(Text("tick", area.left - 8, at_y(tick) + 4, "end", f"{tick:g}"))
    for x, text in ((0, "0"), (last / 2, "steps"), (last, f"{last:,.0f}")):
        picture.texts.append(Text("tick", at_x(x), 190, "middle", text))

    lowest = -99.0
    for name, points in sorted(lines.items(), key=lambda item: at_y(item[1][-1][1])):
        stands_out = "held_out" in name or len(lines) == 1
        picture.strokes.append(Stroke("line first" if stands_out else "line", [(at_x(x), at_y(y)) for x, y in points]))
        lowest = max(lowest + SIZE + 3, at_y(points[-1][1]) + 4)  # names of near ends go one under the other
        picture.texts.append(Text("label", area.right + 6, lowest, "start", words[name]))
    return picture


def width(words: str) -> float:
    """Of a text in a usual sans serif; the reader's own font is not known."""
    return 0.58 * SIZE * len(words)


def beats(a: dict, b: dict) -> bool:
    """No larger, no worse, and better in one."""
    no_worse = a["bytes"] <= b["bytes"] and a["accuracy"] >= b["accuracy"]
    return no_worse and (a["bytes"], a["accuracy"]) != (b["bytes"], b["accuracy"])


def kind(row: dict, teacher: dict, shipped: dict) -> str:
    return "shipped" if row is shipped else "teacher" if row is teacher else "other"


def note(row: dict[str, Any]) -> str:
    return f"{row['variant']}: {numbers.share(row['accuracy'])}, {numbers.size(row['bytes'])}"


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def across(rows: list[dict], area: Box) -> Callable[[float], float]:
    """The logarithmic axis of bytes, with room at both ends."""
    low, high = (log10(f(row["bytes"] for row in rows)) for f in (min, max))
    room = max(0.06 * (high - low), 0.05)
    linear = scale(low - room, high + room, area.left, area.right)
    return lambda value: linear(log10(value))


def up(low: float, high: float, area: Box, number: int) -> tuple[Callable[[float], float], list[float]]:
    """A linear axis with about `number` round ticks that starts and ends on one."""
    rough = (high - low or high or 1.0) / number
    power = 10.0 ** floor(log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = floor(low / step + 1e-9), max(ceil(high / step - 1e-9), floor(low / step + 1e-9) + 1)
    return scale(first * step, last * step, area.bottom, area.top), [i * step for i in range(first, last + 1)]


def axes(picture: Picture, area: Box, at_x: Callable, rows: list[dict], at_y: Callable, ticks: list[tuple[float, str]]):
    for value, words in ticks:
        picture.strokes.append(Stroke("grid", [(area.left, at_y(value)), (area.right, at_y(value))]))
        picture.texts.append(Text("tick", area.left - 8, at_y(value) + 4, "end", words))
    right = -99.0
    for value in (m * 10.0**power for power in range(2, 14) for m in (1, 2, 5)):
        words = numbers.size(value)
        x, half = at_x(value), 4.0 * len(words)
        if area.left <= x <= area.right and x - half > right:
            right = x + half
            picture.strokes.append(Stroke("grid", [(x, area.bottom), (x, area.bottom + 5)]))
            picture.texts.append(Text("tick", x, area.bottom + 20, "middle", words))


def label(picture: Picture, area: Box, named: list[tuple[Dot, str]]) -> None:
    """Name dots beside themselves, at the place around each that covers least and is near; with a leader if far.

    In a crowd an ordinary dot without room stays without a name: its note tells it.
    """
    crowded = len(named) > CROWD
    distances = (11, 20, 36) if crowded else (11, 20, 36, 56, 80)
    taken = [Box(dot.x - 7, dot.y - 7, dot.x + 7, dot.y + 7) for dot in picture.dots]
    for stroke in picture.strokes:
        if stroke.kind in ("interval", "front"):
            taken += [between(*ends) for ends in zip(stroke.points, stroke.points[1:], strict=False)]

    def covers(spot: Spot) -> float:
        return spot.box.outside(area) + sum(map(spot.box.overlap, taken))

    for dot, words in sorted(named, key=lambda pair: pair[0].kind == "other"):
        spots = [spot for far in distances for spot in around(dot, far, width(words))]
        best = min(spots, key=lambda spot: spot.far + covers(spot))
        if crowded and dot.kind == "other" and covers(best) > MOST_COVERED:
            continue
        taken.append(best.box)
        if best.far > 20:
            picture.strokes.append(Stroke("leader", [(dot.x, dot.y), (best.x, best.box.bottom - SIZE / 2)]))
        picture.texts.append(Text(f"label {dot.kind}", best.x, best.box.bottom - 4, best.anchor, words))


class Spot(NamedTuple):
    """A place for a label: `x` is where its anchor is."""

    x: float
    anchor: str
    far: float
    box: Box


def around(dot: Dot, far: float, wide: float) -> Iterator[Spot]:
    """Right of the dot, left, upper right, upper left, lower right, lower left; `far` pixels from its centre."""
    for y in (dot.y, dot.y - far, dot.y + far):
        top, bottom = y - SIZE / 2 - 1, y + SIZE / 2 + 2
        yield Spot(dot.x + far, "start", far, Box(dot.x + far, top, dot.x + far + wide, bottom))
        yield Spot(dot.x - far, "end", far, Box(dot.x - far - wide, top, dot.x - far, bottom))


def between(a: tuple[float, float], b: tuple[float, float]) -> Box:
    """What a thin line from a to b covers."""
    (left, right), (top, bottom) = sorted((a[0], b[0])), sorted((a[1], b[1]))
    return Box(left - 2, top - 2, right + 2, bottom + 2)
