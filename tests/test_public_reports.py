"""The list of tried reports names tests that exist."""

import ast
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

LIST = YAML(typ="safe").load(Path("tests/public_reports.yaml"))


@pytest.mark.parametrize("entry", LIST, ids=lambda entry: entry["reports"][0])
def test_every_report_has_an_outcome_and_a_test(entry):
    assert entry.keys() == {"reports", "tried", "outcome", "test"}
    assert entry["outcome"] in ("works", "repaired", "refused")
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", report) for report in entry["reports"])
    file, _, name = entry["test"].partition("::")
    functions = {node.name for node in ast.walk(ast.parse(Path(file).read_text())) if isinstance(node, ast.FunctionDef)}
    assert not name or name in functions
