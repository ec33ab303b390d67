"""Report on all evaluated models. See stages/report/__init__.py.

python -m stages.report --artifacts artifacts --code artifacts/code/report.json --out artifacts/report \
    [--picture docs/pareto.svg]
"""

from pathlib import Path

from stages.lib.frame import files, params
from stages.lib.frame.errors import command
from stages.report.parts import charts, model_card, page
from stages.report.parts.summary import summarise


def main(
    *,
    artifacts: Path,
    code: Path,
    out: Path,
    picture: Path | None = None,
    params_file: Path = params.PARAMS_FILE,
) -> None:
    tree = params.read(params_file)
    summary = summarise(tree, artifacts)
    models = page.with_timings(tree, artifacts, summary)

    files.write_json(out / "summary.json", summary)
    model_card.write_all(tree, artifacts, out / "cards")
    page.write(out / "report.html", tree, artifacts, summary, models, code)
    if picture:
        charts.write_svg(picture, charts.pareto(models))


if __name__ == "__main__":
    command(main)
