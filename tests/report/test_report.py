import base64
import hashlib
import json
import re
from html import unescape
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import vl_convert

from stages.lib.frame import params
from stages.lib.frame.errors import UserError
from stages.lib.frame.files import write_json
from stages.report import __main__ as report_stage
from stages.report.parts import charts, distillation, numbers, page, proof

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>"
PARAMS = """
data:
  corpus: {method: documents}
prune:
  base: {method: wanda}
distill:
  pupil: {method: logits, model: pretrain/small, teacher: align/large, traces: traces/recorded}
export:
  small: {method: gguf, model: prune/base}
  never-run: {method: gguf}
eval:
  models: {teacher: prune/base, student-with-a-long-name: prune/base, shipped: export/small}
  accuracy: {records: data/corpus}
  bits_per_byte: {records: data/corpus}
  speed: {records: data/corpus}
"""
EXPORT = {
    **{"format": "GGUF Q8_0", "run": "    llama-cli -m model.gguf", "architecture": "llama", "vocabulary": 1024},
    **{"context": None, "parameters": 10, "bytes": 1_000_000, "bits_per_weight": 8.5, "loss_before": 1.0},
    **{"loss_after": 1.1, "kl": 0.1, "same_top": 0.9},
}
PUPIL = {"tokens_seen": 409600.0, "student_flops": 1.23e12, "teacher_flops": 0.0}


def evaluation(folder, size, accuracy, bits_per_byte=2.5):
    """The metrics of the three measures of a model."""
    low, high = accuracy - 0.1, accuracy + 0.1
    right = {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high, "accuracy_macro": accuracy}
    family = {"accuracy.gcd": accuracy, "accuracy_low.gcd": accuracy - 0.2}
    write_json(folder / "accuracy/metrics.json", right | {"num_problems": 48} | family)
    write_json(folder / "bits_per_byte/metrics.json", {"bits_per_byte": bits_per_byte})
    write_json(folder / "speed/metrics.json", {"parameters": size // 4, "bytes": size, "bits_per_weight": 4.85})


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Artefacts of a run, all but the student's timings."""
    artifacts = tmp_path / "artifacts"
    for name, size, accuracy in (
        ("teacher", 16_000_000, 0.8),
        ("student-with-a-long-name", 4_000_000, 0.6),
        ("shipped", 1_000_000, 0.5),
    ):
        folder = artifacts / "eval" / name
        evaluation(folder, size, accuracy)
        answer = {"family": "gcd", "prompt": "Of 4 and 6?", "expected": "2", "answer": HOSTILE, "correct": False}
        text = {"opening": "Call me", "continuation": f"Ishmael {name}"}
        right = {"gcd/1": True, "gcd/2": name != "shipped", "gcd/3": name == "shipped", "gcd/4": False}
        write_json(folder / "accuracy/samples.json", {"answers": [answer], "right": right})
        write_json(folder / "bits_per_byte/samples.json", {"continuations": [text]})
        if not name.startswith("student"):
            timings = {
                "decode_tokens_per_second": 1234.5,
                "prefill_tokens_per_second": 9000.0,
                "joules_per_token": 0.004,
                "energy_measured": 0.0,
                "peak_memory_bytes": 40_000_000,
            }
            write_json(folder / "speed/timings.json", timings)
    write_json(artifacts / "export/small/metrics.json", EXPORT | {"kl": 0.0123, "same_top": 0.976})
    write_json(artifacts / "prune/base/metrics.json", {"held_out_loss": 2.25})
    write_json(artifacts / "data/corpus/metrics.json", {"documents": 321, "sources": {"moby": {"bytes": 77}}})
    learnt = {"loss_before": 6.5, "loss_after": 2.75, "acceptance_before": 0.01, "acceptance_after": 0.625}
    write_json(artifacts / "distill/pupil/metrics.json", learnt | PUPIL)
    curve = "step,loss,held_out_loss,lr\n10,5,5.5,0.1\n15,4,,0.1\n20,3,4.5,0.1\n"
    (artifacts / "prune/base/curve.csv").write_text(curve)
    write_json(artifacts / "code/report.json", {"a.py": "0"})
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report(project):
    report_stage.main(
        artifacts=project / "artifacts",
        code=project / "artifacts/code/report.json",
        out=project / "report",
        picture=project / "docs/pareto.svg",
    )
    return (project / "report/report.html").read_text(), json.loads((project / "report/summary.json").read_text())


def test_summary_is_relative_to_the_teacher(project):
    _, summary = report(project)

    assert (summary["teacher"], summary["shipped"]) == ("teacher", "shipped")
    rows = {row["variant"]: row for row in summary["models"]}
    assert list(rows) == ["teacher", "student-with-a-long-name", "shipped"]
    assert rows["shipped"]["accuracy_kept"] == pytest.approx(0.5 / 0.8)
    assert rows["shipped"]["times_smaller"] == 16
    assert rows["teacher"]["accuracy_kept"] == rows["teacher"]["times_smaller"] == 1
    assert rows["shipped"]["families"] == {"gcd": 0.5}


def test_teacher_and_shipped_model_are_the_gates_then_the_named_then_first_and_last(project):
    roles = {"a": "prune/base", "teacher": "prune/base", "shipped": "export/small", "z": "prune/base"}
    models = "models: {" + ", ".join(f"{name}: {model}" for name, model in roles.items()) + "}"
    text = re.sub("models: {.*}", models, PARAMS)
    (project / "params.yaml").write_text(text)
    summary = report(project)[1]
    assert (summary["teacher"], summary["shipped"]) == ("teacher", "z")
    (project / "params.yaml").write_text(text + GATES.replace("teacher: teacher", "teacher: a"))
    summary = report(project)[1]
    assert (summary["teacher"], summary["shipped"]) == ("a", "shipped")
    (project / "params.yaml").write_text(text.replace(" teacher: prune/base", " large: prune/base"))
    assert report(project)[1]["teacher"] == "a"


GATES = """
gates: {model: export/small, teacher: teacher, student: shipped, accuracy_kept: 0.5, kl: 0.02, bytes: 2000000}
"""


def test_what_a_file_lost_is_told_against_its_source_and_the_gates(project):
    """Two of four problems flip, although as many are right; one gate is too narrow."""
    (project / "params.yaml").write_text(PARAMS + GATES)
    shipped = report(project)[1]["models"][-1]
    assert (shipped["kl"], shipped["same_top"], shipped["flips"]) == (0.0123, 0.976, 0.5)
    assert shipped["refused"] == []
    (project / "params.yaml").write_text(PARAMS + GATES.replace("0.02", "0.01"))
    html, summary = report(project)
    assert summary["models"][-1]["refused"] == ["it is 0.0123 nats a token from its source; at most 0.01 allowed"]
    assert "shipped: it is 0.0123 nats" in html and "97.6" in html


def test_flips_want_the_same_questions():
    assert proof.flips({"a": True, "b": False}, {"a": True, "b": True}) == 0.5
    assert proof.flips({"a": True}, {"b": True}) is None


def test_summary_knows_nothing_of_this_machine(project):
    first = (report(project), (project / "report/summary.json").read_bytes())[1]
    for path in project.rglob("timings.json"):
        path.unlink()
    report(project)

    assert (project / "report/summary.json").read_bytes() == first


def test_shows_every_model_and_stage_that_was_run(project):
    html, _ = report(project)

    for words in ("teacher", "student-with-a-long-name", "shipped", "corpus", "321", "77", "2.250", "0.0123", "4.85"):
        assert words in html
    assert "never-run" not in html
    assert "4.5" in html  # the end of the held-out curve
    assert "1,234" in html or "1,235" in html


def test_a_distillation_shows_its_cost_and_its_acceptance(project):
    html, _ = report(project)

    row = html[html.index("<tr><td>pupil</td>") :].partition("</tr>")[0]
    for words in ("logits", "pretrain/small", "align/large", "410 k", "1.23 T", "62.5 % <small>from 1.0<"):
        assert words in row.replace("\u00a0", " "), words
    assert row.count("not measured") == 2  # seconds and joules


LINK = "traces: data/problems, teacher: align/dpo"
CHAINS = f"""
distill:
  first-0: {{method: logits, model: pretrain/small, {LINK}}}
  first-1: {{method: logits, model: pretrain/small, {LINK}}}
  second-0: {{method: solutions, model: distill/first-0, {LINK}}}
  second-1: {{method: solutions, model: distill/first-1, {LINK}}}
  one-0: {{method: hidden, model: prune/half, {LINK}}}
  one-1: {{method: hidden, model: prune/half, {LINK}}}
prune:
  half: {{method: depth, model: distill/first-0}}
quantize:
  int8: {{method: int8, model: distill/second-1}}
eval:
  models: {{teacher: align/dpo, a0: distill/second-0, a1: distill/second-1, b0: distill/one-0, b1: distill/one-1}}
  accuracy: {{records: data/problems}}
  bits_per_byte: {{records: data/problems}}
  speed: {{records: data/problems}}
compare:
  two-links: [a0, a1]
  one-link: [b0, b1]
"""
REACHED = {"a0": (0.40, 4.0), "a1": (0.50, 3.0), "b0": (0.55, 3.0), "b1": (0.61, 2.5)}


@pytest.fixture
def seeds(tmp_path, monkeypatch):
    """Two paths of two seeds: one trained in two links, the other, with as many tokens, in one."""
    for variant, (accuracy, bits) in {"teacher": (0.9, 1.0), **REACHED}.items():
        evaluation(tmp_path / "artifacts/eval" / variant, 1_000_000, accuracy, bits)
    write_json(tmp_path / "artifacts/code/report.json", {})
    for variant, tokens, acceptance in (
        *(("first-0", 100.0, 0.2), ("first-1", 100.0, 0.2), ("second-0", 300.0, 0.3)),
        *(("second-1", 300.0, 0.5), ("one-0", 400.0, 0.6), ("one-1", 400.0, 0.8)),
    ):
        folder = tmp_path / "artifacts/distill" / variant
        cost = {"tokens_seen": tokens, "student_flops": 6 * tokens, "teacher_flops": 2 * tokens}
        write_json(folder / "metrics.json", cost | {"acceptance_before": 0.1, "acceptance_after": acceptance})
        write_json(folder / "timings.json", {"seconds": tokens / 10, "joules": 2 * tokens, "energy_measured": 0.0})
    (tmp_path / "params.yaml").write_text(CHAINS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_paths_are_compared_over_seeds_with_students_t(seeds):
    _, summary = report(seeds)
    one, two = (summary["compare"][path] for path in ("one-link", "two-links"))

    assert (two["tokens_seen"], two["student_flops"], two["teacher_flops"]) == (400, 2400, 800)  # 100 + 300 a seed
    assert two["links"] == [["first-0", "second-0"], ["first-1", "second-1"]] and "difference" not in two
    # by hand: mean 0.45, standard deviation 0.0707, over sqrt(2) 0.05; t of one degree of freedom is 12.706
    assert two["accuracy"]["mean"] == pytest.approx(0.45)
    assert two["accuracy"]["low"] == pytest.approx(0.45 - 12.7062 * 0.05, rel=1e-4)
    assert two["acceptance"]["mean"] == pytest.approx(0.4)
    difference = one["difference"]  # 0.15 and 0.11; -1 and -0.5; both 0.3
    assert difference["accuracy"]["mean"] == pytest.approx(0.13)
    assert difference["accuracy"]["high"] == pytest.approx(0.13 + 12.7062 * 0.02, rel=1e-4)
    assert difference["bits_per_byte"]["mean"] == -0.75
    assert difference["acceptance"]["low"] == pytest.approx(difference["acceptance"]["high"]) == pytest.approx(0.3)


def test_the_interval_is_the_textbooks():
    """scipy's own, and t of 0.975 with two and four degrees of freedom as printed in any table: 4.303, 2.776."""
    from scipy import stats

    for values, quantile in (([0.4, 0.5, 0.45], 4.303), ([1.0, 2.0, 4.0, 8.0, 16.0], 2.776)):
        found = distillation.interval(values)
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (found["low"], found["high"]) == pytest.approx((low, high))
        assert (found["high"] - found["mean"]) / stats.sem(values) == pytest.approx(quantile, abs=5e-4)


def test_the_report_says_whether_paths_are_equal_and_what_they_show(seeds):
    html, _ = report(seeds)
    text = re.sub(r"\s+", " ", unescape(html))

    assert "Equal within 1 % in the student’s tokens and FLOPs." in text and "Not equal" not in text
    assert "accuracy no difference shown, bits/byte no difference shown, acceptance higher." in text
    assert "estimate from CPU load" in text
    row = text[text.index("<tr><td>two-links</td>") :].partition("</tr>")[0]
    assert "45.0 %" in row and "<td>40</td> <td>800 J</td>" in row  # seconds and joules of both links, a seed

    path = seeds / "artifacts/distill/one-1/metrics.json"
    write_json(path, json.loads(path.read_text()) | {"tokens_seen": 420.0})
    text = re.sub(r"\s+", " ", unescape(report(seeds)[0]))
    assert "<b>Not equal:</b> one-link took 410 tokens, two-links 400." in text
    assert "Equal within" not in text


def test_a_student_is_found_through_what_was_done_to_it_later(seeds):
    tree = params.read()
    assert distillation.links(tree, "quantize/int8") == ["second-1", "first-1"]
    assert distillation.links(tree, "distill/one-0") == ["one-0"]  # it begins as a pruned model, which is no link
    assert distillation.links(tree, "align/dpo") == []


def test_students_are_listed_best_first_with_their_links_summed(seeds):
    html, summary = report(seeds)

    table = html[html.index("<h2>Distillation</h2>") :]
    places = [table.index(f"<tr><td>{name}<") for name in ("one-1", "one-0", "second-1", "second-0", "first-0")]
    assert places == sorted(places)
    second = summary["distilled"]["second-0"]
    assert second["kinds"] == ["logits", "solutions"] and second["begins_as"] == "pretrain/small"
    assert (second["tokens_seen"], second["acceptance_before"], second["acceptance_after"]) == (400, 0.1, 0.3)
    assert (second["accuracy"], second["bits_per_byte"]) == (0.4, 4.0)
    assert summary["distilled"]["first-0"]["accuracy"] is None


def test_says_what_was_not_measured_and_what_only_estimated(project):
    html, _ = report(project)

    student = table_row(html, "student-with-a-long-name")
    assert student.count("not measured") == 4  # speeds, memory, energy
    assert table_row(html, "shipped").count("not measured") == 0
    assert "Not measured on this machine: student-with-a-long-name" in html
    assert "estimate from CPU load" in html

    for path in project.rglob("timings.json"):
        path.unlink()
    html, _ = report(project)
    assert all(table_row(html, name).count("not measured") == 4 for name in ("teacher", "shipped"))
    assert "Nothing was timed on this machine" in html
    assert "estimate from CPU load" not in html


def table_row(html, name):
    return re.search(rf"<tr class=.\w+.>\s*<td>{name}.*?</tr>", html, re.DOTALL).group()


@pytest.mark.parametrize("measure", ["accuracy", "bits_per_byte", "speed"])
def test_a_measure_that_was_not_run_leaves_its_cells_empty(project, measure):
    for path in project.glob(f"artifacts/eval/*/{measure}/*"):
        path.unlink()
    html, summary = report(project)
    missing = {"accuracy": "accuracy_kept", "bits_per_byte": "bits_per_byte", "speed": "times_smaller"}[measure]
    assert all(row[missing] is None for row in summary["models"])
    assert "not measured" in table_row(html, "shipped")


def test_nothing_was_evaluated_but_exports_have_cards(project):
    for path in project.glob("artifacts/eval/*/*/*"):
        path.unlink()
    report(project)
    card = (project / "report/cards/small.md").read_text()
    assert "| accuracy, held-out problems | not measured |" in card


def test_a_measure_the_report_does_not_know_has_a_table_of_its_own(project):
    (project / "params.yaml").write_text(PARAMS.replace("  speed:", "  toxicity: {records: data/corpus}\n  speed:"))
    write_json(project / "artifacts/eval/shipped/toxicity/metrics.json", {"toxic_share": 0.125})
    html, summary = report(project)
    assert summary["models"][-1]["other"] == {"toxic_share": 0.125}
    table = html[html.index("<h3>Other measures</h3>") :].partition("</table>")[0]
    assert "toxic share" in table and "0.1250" in table and "not measured" in table_row(table, "teacher")


def test_without_models_there_is_nothing_to_report(project):
    (project / "params.yaml").write_text("eval: {models: {}}")
    with pytest.raises(UserError, match="eval.models is empty"):
        report(project)


class Tags(HTMLParser):
    """Names of a page's tags, what attributes they have, and the scripts' texts by type."""

    def __init__(self, text):
        super().__init__()
        self.names, self.attributes, self.scripts, self.open = set(), {}, [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes |= attrs
        self.open = dict(attrs).get("type", "javascript") if tag == "script" else None

    def handle_data(self, data):
        if self.open:
            self.scripts.append((self.open, data))

    def handle_endtag(self, tag):
        self.open = None


def specifications(html):
    return [json.loads(text) for kind, text in Tags(html).scripts if kind == "application/json"]


def test_what_models_write_is_text_and_nothing_else(project):
    html, _ = report(project)

    assert "&lt;script&gt;" in html and "img" not in Tags(html).names
    assert [text for kind, text in Tags(html).scripts if kind == "javascript"] == [page.script()]
    assert html.count("Of 4 and 6?") == 1  # the models' common answer stands once, under one question
    assert html.count("Ishmael ") == 3


def test_loads_nothing_from_anywhere(project):
    html, _ = report(project)
    svg = (project / "docs/pareto.svg").read_text()

    for text in (html, svg):
        read = Tags(text)
        assert not read.names & {"link", "img", "iframe", "object", "embed", "base", "image", "use"}
        assert not set(read.attributes) & {"src", "href", "xlink:href", "srcset", "action", "onload", "onerror"}
    assert not re.search(r"url\((?!#)|@import|<script", svg)
    for spec in specifications(html):
        assert all("values" in data or "source" in data or data["name"].endswith("_store") for data in spec["data"])
        assert "url" not in json.dumps(spec["data"])


def test_only_the_script_that_the_page_brings_may_run(project):
    html, _ = report(project)
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', html)
    digest = base64.b64encode(hashlib.sha256(page.script().encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_the_picture_is_the_same_twice_and_names_every_model(project, capfd):
    report(project)
    assert capfd.readouterr().err == ""  # where Vega reports what it could not draw
    first = (project / "docs/pareto.svg").read_bytes()
    report(project)
    assert (project / "docs/pareto.svg").read_bytes() == first

    texts = [node.text for node in ElementTree.fromstring(first).iter() if node.tag.endswith("}text")]
    assert {"teacher", "student-with-a-long-name", "shipped", "1 MB", "10 MB"} <= set(texts)
    assert "accuracy on unseen problems (axis begins at 0 %)" not in texts
    style = next(node.text for node in ElementTree.fromstring(first).iter() if node.tag.endswith("}style"))
    assert "prefers-color-scheme: dark" in style and "--paper" in style


def models(*sizes_and_accuracies, timings=None):
    """Rows as the charts get them, the first the teacher's, the last the shipped model's."""
    last = len(sizes_and_accuracies) - 1
    return [
        {
            "variant": f"variant-number-{n}",
            "model": "prune/any",
            "role": {0: "teacher", last: "shipped"}.get(n, "other"),
            "bytes": size,
            "accuracy": accuracy,
            "accuracy_low": accuracy - 0.05,
            "accuracy_high": accuracy + 0.05,
            "bits_per_byte": 3.5 + accuracy,
            "kl": 0.01,
            "timings": timings or {},
        }
        for n, (size, accuracy) in enumerate(sizes_and_accuracies)
    ]


def test_the_chart_holds_every_model_and_tells_its_numbers():
    rows = models((1e7, 0.8), (2e6, 0.6), (1e6, 0.7), timings={"decode_tokens_per_second": 321.0})
    spec = charts.pareto(rows).to_dict()
    data = spec["data"]["values"]
    assert [(point["model"], point["bytes"], point["accuracy"]) for point in data] == [
        (row["variant"], row["bytes"], row["accuracy"]) for row in rows
    ]
    assert [point["on_front"] for point in data] == [True, False, True]
    [dots] = [layer for layer in spec["layer"] if layer["mark"]["type"] == "point"]
    encoding = dots["encoding"]
    assert encoding["x"]["field"] == "bytes" and encoding["x"]["scale"]["type"] == "log"
    assert encoding["y"]["field"] == "accuracy"
    told = [entry["field"] for entry in encoding["tooltip"]]
    assert told == ["model", "file", "accuracy_words", "bits_per_byte", "kl", "decode"]
    assert all(set(told) <= set(point) for point in data)
    shown = [data[0][field].replace("\u00a0", " ") for field in told]
    assert shown == ["variant-number-0", "10 MB", "80.0 % (75.0–85.0)", "4.3", "0.01", "321"]
    assert charts.points([rows[0] | {"model": "align/sft", "kl": None}])[0]["kl"] == "none, it was trained"
    [bars] = [layer for layer in spec["layer"] if layer["mark"]["type"] == "rule"]
    assert (bars["encoding"]["y"]["field"], bars["encoding"]["y2"]["field"]) == ("low", "high")


@pytest.mark.parametrize(
    ("accuracies", "begin", "title"),
    [
        ((0.8, 0.62), 0.5, "accuracy on unseen problems (axis begins at 50 %)"),
        ((0.8, 0.1), 0.0, "accuracy on unseen problems"),
    ],
)
def test_the_axis_says_where_it_begins(accuracies, begin, title):
    spec = charts.pareto(models(*((1e6, accuracy) for accuracy in accuracies))).to_dict()
    y = spec["layer"][2]["encoding"]["y"]
    assert y["scale"]["domain"][0] == begin and y["axis"]["title"].replace("\u00a0", " ") == title
    assert y["scale"]["domain"][1] > 0.85  # the interval's end is in it


def test_a_curve_keeps_its_ends_however_long_it_is():
    loss = [(float(step), 5 - step / 1e4) for step in range(10_000)]
    spec = charts.curve({"held_out_loss": loss, "empty": []}).to_dict()
    data = spec["data"]["values"]
    assert len(data) <= charts.CURVE_POINTS and data[-1]["step"] == 9999
    assert {point["loss"] for point in data} == {"held out loss, 4 at the end"}
    assert spec["encoding"]["y"]["title"] == "loss (axis begins at 3)"
    assert charts.curve({"loss": []}) is None


def test_labels_of_neighbours_do_not_overlap():
    rows = models(*((1_000_000 + 30_000 * n, 0.5 + 0.01 * (n % 3)) for n in range(8)))
    boxes = labels(rows)
    assert len(boxes) == 8
    assert not overlapping(boxes)


def test_a_crowd_leaves_some_without_a_name_but_never_who_matters():
    rows = models(*((1_000_000 + 4_000 * n, 0.5 + 0.01 * (n % 3)) for n in range(60)))
    boxes = labels(rows)
    assert not overlapping(boxes)
    names = [name for name, *_ in boxes]
    assert len(set(names)) == len(names) < 60
    assert {row["variant"] for row in (rows[0], rows[-1], *charts.front(rows))} <= set(names)


def labels(rows):
    """(name, left, top, right, bottom) of the names in a picture; letters are taken to be narrow."""
    spec = charts.vega(charts.pareto(rows).properties(width=900), in_browser=False)
    found, letter = [], 5.5
    for node in ElementTree.fromstring(vl_convert.vega_to_svg(spec)).iter():
        if node.text and node.text.startswith("variant-") and node.get("opacity") != "0":
            x, y = map(float, re.findall(r"-?[\d.]+", node.get("transform")))
            width = letter * len(node.text)
            left = x - width * {"start": 0, "middle": 0.5, "end": 1}[node.get("text-anchor")]
            found.append((node.text, left, y - 9, left + width, y + 2))
    return found


def overlapping(boxes):
    return [
        (a[0], b[0])
        for n, a in enumerate(boxes)
        for b in boxes[:n]
        if min(a[3], b[3]) > max(a[1], b[1]) and min(a[4], b[4]) > max(a[2], b[2])
    ]


def test_front_passes_only_through_models_that_none_beats():
    rows = models((100, 0.3), (200, 0.2), (300, 0.6), (300, 0.5))
    assert charts.front(rows) == [rows[0], rows[2]]


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (numbers.size, 980_000, "980 kB"),
        (numbers.size, 999_700, "1 MB"),
        (numbers.count, 4_130_000, "4.13 M"),
        (numbers.share, 0.8349, "83.5 %"),
        (numbers.share, 1.0, "100 %"),
        (numbers.points, -0.0534, "−5.3"),
        (numbers.signed, 0.25, "+0.25"),
        (lambda value: numbers.count(value, 2_130_000), 82_000, "0.08 M"),
        (numbers.joules, 0.0062, "6.2 mJ"),
        (numbers.number, 12345, "12,345"),
        (numbers.number, 0.012345, "0.01235"),
        (numbers.number, float("nan"), "nan"),
        (numbers.brief, 3100.4, "3,100"),
        (numbers.brief, None, "not measured"),
    ],
)
def test_numbers_read_well(show, value, text):
    assert show(value).replace("\u00a0", " ") == text


def test_redundancy_is_shown_by_kind_in_the_order_of_the_blocks(project):
    shares = {f"model.layers.{i}.mlp.up_proj": i / 100 for i in range(12)} | {"model.layers.0.self_attn.q_proj": 0.75}
    assert page.redundancy({"redundancy": shares})["up_proj"] == [i / 100 for i in range(12)]
    assert page.redundancy({"kl": 0.1}) == {}
    write_json(project / "artifacts/prune/base/metrics.json", {"redundancy": shares})
    html = re.sub(r"\s*\n\s*", "", report(project)[0])
    assert '<tr><td>q proj</td><td class="heat" style="--share: 0.75">75</td></tr>' in html
