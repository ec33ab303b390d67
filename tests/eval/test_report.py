import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from stages.eval import _format, _pictures, _report
from stages.lib.artefacts import write_json

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>"
PARAMS = """
data:
  corpus: {method: documents}
prune:
  base: {method: wanda}
distill:
  pupil: {method: logits, model: pretrain/small, teacher: align/large}
export:
  small: {method: gguf}
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
        write_json(folder / "samples.json", {"answers": [answer], "continuations": [text]})
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
    write_json(artifacts / "export/small/metrics.json", {"kl": 0.0123})
    write_json(artifacts / "prune/base/metrics.json", {"held_out_loss": 2.25})
    write_json(artifacts / "data/corpus/metrics.json", {"documents": 321, "sources": {"moby": {"bytes": 77}}})
    learnt = {"loss_before": 6.5, "loss_after": 2.75, "acceptance_before": 0.01, "acceptance_after": 0.625}
    write_json(artifacts / "distill/pupil/metrics.json", learnt | PUPIL)
    (artifacts / "prune/base/curve.csv").write_text("step,loss,held_out_loss,lr\n10,5,,0.1\n20,3,4.5,0.1\n")
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report(project):
    _report.main(artifacts=project / "artifacts", out=project / "report", picture=project / "docs/pareto.svg")
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
    for words in ("logits", "pretrain/small", "align/large", "410 k", "1.23 T", "6.5 → 2.75", "1.0 % → 62.5 %"):
        assert words in row.replace("\u00a0", " "), words


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
    picture = _pictures.pareto(rows, rows[0], rows[-1], 960)

    boxes = []
    for text in picture.texts:
        if text.kind.startswith("label"):
            left = text.x - (_pictures.width(text.text) if text.anchor == "end" else 0)
            boxes.append(_pictures.Box(left, text.y - 11, left + _pictures.width(text.text), text.y + 3))
    assert len(boxes) == 8
    assert all(a.overlap(b) == 0 for n, a in enumerate(boxes) for b in boxes[:n])


def test_front_passes_only_through_models_that_none_beats():
    rows = [metrics(size, accuracy) for size, accuracy in ((100, 0.3), (200, 0.2), (300, 0.6), (300, 0.5))]

    beaten = [any(_pictures.beats(other, row) for other in rows) for row in rows]

    assert beaten == [False, True, False, True]


def test_a_missing_evaluation_is_named(project):
    (project / "artifacts/eval/shipped/metrics.json").unlink()

    with pytest.raises(SystemExit, match="artifacts/eval/shipped/metrics.json is missing"):
        report(project)


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (_format.size, 980_000, "980 kB"),
        (_format.size, 999_700, "1 MB"),
        (_format.count, 4_130_000, "4.13 M"),
        (_format.share, 0.8349, "83.5 %"),
        (_format.share, 1.0, "100 %"),
        (_format.joules, 0.0062, "6.2 mJ"),
        (_format.number, 12345, "12,345"),
        (_format.number, 0.012345, "0.01235"),
        (_format.number, float("nan"), "nan"),
        (_format.brief, 3100.4, "3,100"),
        (_format.brief, None, "not measured"),
    ],
)
def test_numbers_read_well(show, value, text):
    assert show(value).replace("\u00a0", " ") == text


def test_redundancy_is_shown_by_kind_in_the_order_of_the_blocks(project):
    shares = {f"model.layers.{i}.mlp.up_proj": i / 100 for i in range(12)} | {"model.layers.0.self_attn.q_proj": 0.75}
    assert _report.redundancy({"redundancy": shares})["up_proj"] == [i / 100 for i in range(12)]
    assert _report.redundancy({"kl": 0.1}) == {}
    write_json(project / "artifacts/prune/base/metrics.json", {"redundancy": shares})
    page, _ = report(project)
    page = re.sub(r"\s*\n\s*", "", page)
    assert '<tr><td>q proj</td><td class="heat" style="--share: 0.75">75</td></tr>' in page
