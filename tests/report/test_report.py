import json
import re
from html import unescape
from html.parser import HTMLParser
from itertools import combinations
from xml.etree import ElementTree

import pytest

from stages.lib.frame import params
from stages.lib.frame.errors import UserError
from stages.lib.frame.files import write_json
from stages.report import __main__ as report_stage
from stages.report.parts import distillation, numbers, pictures, proof

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
  teacher: {model: prune/base}
  student-with-a-long-name: {model: prune/base}
  shipped: {model: export/small}
"""
PUPIL = {"tokens_seen": 409600.0, "student_flops": 1.23e12, "teacher_flops": 0.0}


def metrics(size, accuracy):
    return {
        "parameters": size // 4,
        "bytes": size,
        "bits_per_byte": 2.5,
        "bits_per_weight": 4.85,
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.1,
        "accuracy_high": accuracy + 0.1,
        "accuracy_macro": accuracy,
        "num_problems": 48,
        "accuracy.gcd": accuracy,
        "accuracy_low.gcd": accuracy - 0.2,
    }


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Artefacts of a run, all but the student's timings."""
    for variant, size, accuracy in (
        ("teacher", 16_000_000, 0.8),
        ("student-with-a-long-name", 4_000_000, 0.6),
        ("shipped", 1_000_000, 0.5),
    ):
        folder = tmp_path / "artifacts" / "eval" / variant
        write_json(folder / "metrics.json", metrics(size, accuracy))
        answer = {"family": "gcd", "prompt": "Of 4 and 6?", "expected": "2", "answer": HOSTILE, "correct": False}
        text = {"opening": "Call me", "continuation": f"Ishmael {variant}"}
        right = {"gcd/1": True, "gcd/2": variant != "shipped", "gcd/3": variant == "shipped", "gcd/4": False}
        write_json(folder / "samples.json", {"answers": [answer], "continuations": [text], "right": right})
        if not variant.startswith("student"):
            timings = {
                "decode_tokens_per_second": 1234.5,
                "prefill_tokens_per_second": 9000.0,
                "joules_per_token": 0.004,
                "energy_measured": 0.0,
                "peak_memory_bytes": 40_000_000,
            }
            write_json(folder / "timings.json", timings)
    artifacts = tmp_path / "artifacts"
    write_json(artifacts / "export/small/metrics.json", {"kl": 0.0123, "same_top": 0.976})
    write_json(artifacts / "prune/base/metrics.json", {"held_out_loss": 2.25})
    write_json(artifacts / "data/corpus/metrics.json", {"documents": 321, "sources": {"moby": {"bytes": 77}}})
    learnt = {"loss_before": 6.5, "loss_after": 2.75, "acceptance_before": 0.01, "acceptance_after": 0.625}
    write_json(artifacts / "distill/pupil/metrics.json", learnt | PUPIL)
    (artifacts / "prune/base/curve.csv").write_text("step,loss,held_out_loss,lr\n10,5,,0.1\n20,3,4.5,0.1\n")
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report(project):
    report_stage.main(artifacts=project / "artifacts", out=project / "report", picture=project / "docs/pareto.svg")
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
  teacher: {{model: align/dpo}}
  a0: {{model: distill/second-0}}
  a1: {{model: distill/second-1}}
  b0: {{model: distill/one-0}}
  b1: {{model: distill/one-1}}
compare:
  two-links: [a0, a1]
  one-link: [b0, b1]
"""
REACHED = {"a0": (0.40, 4.0), "a1": (0.50, 3.0), "b0": (0.55, 3.0), "b1": (0.61, 2.5)}


@pytest.fixture
def seeds(tmp_path, monkeypatch):
    """Two paths of two seeds: one trained in two links, the other, with as many tokens, in one."""
    for variant, (accuracy, bits) in {"teacher": (0.9, 1.0), **REACHED}.items():
        own = metrics(1_000_000, accuracy) | {"bits_per_byte": bits}
        write_json(tmp_path / "artifacts/eval" / variant / "metrics.json", own)
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

    assert html.count("not measured on this machine") == 1
    assert "Not measured on this machine: student-with-a-long-name" in html
    assert "estimate from CPU load" in html

    for path in project.rglob("timings.json"):
        path.unlink()
    html, _ = report(project)
    assert html.count("not measured on this machine") == 3 + 3  # a row each, and three pictures
    assert "estimate from CPU load" not in html


def test_what_models_say_is_text_and_nothing_else(project):
    html, _ = report(project)

    assert "&lt;script&gt;" in html
    assert "<script" not in html and "<img" not in html
    assert html.count("Of 4 and 6?") == 1  # the models' common answer stands once, under one question
    assert html.count("Ishmael ") == 3


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.names, self.attributes = set(), {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes |= attrs


def test_loads_nothing_from_anywhere(project):
    html, _ = report(project)
    svg = (project / "docs/pareto.svg").read_text()

    for text in (html, svg):
        page = Tags(text)
        assert not page.names & {"script", "link", "img", "iframe", "object", "embed", "base", "image", "use"}
        assert not set(page.attributes) & {"src", "href", "xlink:href", "srcset", "action", "onload", "onerror"}
        assert not re.search(r"url\(|@import", text)


def test_picture_is_well_formed_and_names_every_model(project):
    report(project)

    texts = [node.text for node in ElementTree.parse(project / "docs/pareto.svg").iter() if node.tag.endswith("}text")]

    assert {"teacher", "student-with-a-long-name", "shipped"} <= set(texts)


def test_labels_of_neighbours_do_not_overlap():
    rows = [
        metrics(1_000_000 + 30_000 * n, 0.5 + 0.01 * (n % 3)) | {"variant": f"variant-number-{n}"} for n in range(8)
    ]
    boxes = labels(pictures.pareto(rows, rows[0], rows[-1], 960))
    assert len(boxes) == 8
    assert all(a.overlap(b) == 0 for (_, a), (_, b) in combinations(boxes, 2))


def test_a_crowd_leaves_some_without_a_name_but_never_who_matters():
    rows = [
        metrics(1_000_000 + 4_000 * n, 0.5 + 0.01 * (n % 3)) | {"variant": f"variant-number-{n}"} for n in range(60)
    ]
    boxes = labels(pictures.pareto(rows, rows[30], rows[-1], 960))
    assert all(a.overlap(b) == 0 for (_, a), (_, b) in combinations(boxes, 2))
    names = [name for name, _ in boxes]
    assert len(set(names)) == len(names) < 60
    front = [row for row in rows if not any(pictures.beats(other, row) for other in rows)]
    assert {row["variant"] for row in (rows[30], rows[-1], *front)} <= set(names)


def labels(picture):
    """The names in a picture, and the place that each covers."""
    found = []
    for text in picture.texts:
        if text.kind.startswith("label"):
            left = text.x - (pictures.width(text.text) if text.anchor == "end" else 0)
            box = pictures.Box(left, text.y - 11, left + pictures.width(text.text), text.y + 3)
            found.append((text.text, box))
    return found


def test_front_passes_only_through_models_that_none_beats():
    rows = [metrics(size, accuracy) for size, accuracy in ((100, 0.3), (200, 0.2), (300, 0.6), (300, 0.5))]

    beaten = [any(pictures.beats(other, row) for other in rows) for row in rows]

    assert beaten == [False, True, False, True]


def test_a_missing_evaluation_is_named(project):
    (project / "artifacts/eval/shipped/metrics.json").unlink()

    with pytest.raises(UserError, match="artifacts/eval/shipped/metrics.json is missing"):
        report(project)


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
    assert report.redundancy({"redundancy": shares})["up_proj"] == [i / 100 for i in range(12)]
    assert report.redundancy({"kl": 0.1}) == {}
    write_json(project / "artifacts/prune/base/metrics.json", {"redundancy": shares})
    page, _ = report(project)
    page = re.sub(r"\s*\n\s*", "", page)
    assert '<tr><td>q proj</td><td class="heat" style="--share: 0.75">75</td></tr>' in page
