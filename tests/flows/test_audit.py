"""The environment of a release, by the real tools of `make release`; the advisory service is one on this machine."""

import json
import socket
from importlib.metadata import version

import pytest

from flows import audit
from stages.lib.frame.errors import UserError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not audit.TOOLS.is_dir(), reason="make .venv/audit/ready installs the tools"),
]


def advisories(asked):
    """OSV's API: ossf.github.io/osv-schema. It knows something against one package."""
    package = asked["package"]
    events = [{"introduced": "0"}, {"fixed": "2.11.3"}]
    affected = [{"package": package, "ranges": [{"type": "ECOSYSTEM", "events": events}]}]
    return {"vulns": [{"id": "PYSEC-2021-66", "affected": affected}]} if package["name"] == "jinja2" else {}


@pytest.fixture
def service(replying):
    replying.reply = advisories
    return f"{replying.url}/query"


@pytest.fixture
def lock(tmp_path):
    file = tmp_path / "requirements.lock"
    hashes = "".join(f" \\\n    --hash=sha256:{digit * 64}" for digit in "12")
    file.write_text(f"# a lock\njinja2==2.10{hashes}\nidna==3.10{hashes}\n")
    return file


def test_what_is_known_is_told_with_what_mends_it(lock, service):
    assert audit.vulnerabilities(lock, service) == ["jinja2 2.10: PYSEC-2021-66, mended in 2.11.3"]


def test_the_projects_lock_can_be_audited(service):
    [found] = audit.vulnerabilities(audit.LOCK, service)
    assert found.startswith("jinja2 ")


def test_a_service_that_does_not_answer_is_one_line_and_no_verdict(lock, capsys):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/v1/query"
    with pytest.raises(UserError, match="^not audited: http://127.0.0.1:.* does not answer"):
        audit.vulnerabilities(lock, address)
    audit.main(lock, service=address)
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("not audited")


def test_the_sbom_lists_this_environment(tmp_path):
    """The tool refuses what is against CycloneDX's schema."""
    assert audit.write_sbom(tmp_path / "sbom.json")
    listed = json.loads((tmp_path / "sbom.json").read_text())
    assert listed["bomFormat"] == "CycloneDX"
    versions = {each["name"]: each["version"] for each in listed["components"]}
    assert all(versions[name] == version(name) for name in ("torch", "transformers", "dvc", "pytest"))
    assert "timestamp" not in listed["metadata"]  # the same bytes every time
