"""What the environment of a release is made of (an SBOM), and what is known against it.

python -m flows.audit     known vulnerabilities of what infra/requirements.lock installs, by pip-audit from osv.dev

Both tools lie in an environment of their own, .venv/audit, which `make release` installs.
"""

import json
import subprocess
import sys
from pathlib import Path

from stages.lib.frame import files
from stages.lib.frame.errors import UserError, command

TOOLS = Path(sys.prefix, "audit", "bin")
LOCK = Path("infra/requirements.lock")
SERVICE = "https://api.osv.dev/v1/query"
PATIENCE = 10  # seconds for an answer


def write_sbom(target: Path) -> bool:
    """This environment as CycloneDX JSON, held to its schema by the tool; the same bytes every time. False: no tool."""
    if not (tool := TOOLS / "cyclonedx-py").is_file():
        return False
    with files.writing(target) as partial:
        words = [tool, "environment", sys.executable, "--output-reproducible", "--output-format", "JSON"]
        done = subprocess.run([*words, "--output-file", partial], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"no SBOM could be written: {done.stderr.strip()}")
    return True


def vulnerabilities(lock: Path, service: str) -> list[str]:
    """A line for every known one, name, version, id and what mends it."""
    if not (tool := TOOLS / "pip-audit").is_file():
        raise UserError(f"{tool} is missing: make release installs it")
    words = (
        f"--disable-pip --no-deps --format json --progress-spinner off --timeout {PATIENCE} --vulnerability-service osv"
    )
    asked = [tool, "--requirement", lock, *words.split(), "--osv-url", service]
    done = subprocess.run(asked, capture_output=True, text=True)
    if not done.stdout.strip():  # with findings its exit status is that of a failure, too
        reason = (done.stderr.strip() or "no word").splitlines()[-1]
        raise UserError(f"not audited: {service} does not answer ({reason})")
    return [
        f"{package['name']} {package['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'none'}"
        for package in json.loads(done.stdout)["dependencies"]
        for found in package["vulns"]
    ]


def main(lock: Path = LOCK, *, service: str = SERVICE) -> None:
    """Known vulnerabilities.

    Args:
        lock: The pinned requirements.
        service: OSV's API, or a mirror of it.
    """
    try:
        found = vulnerabilities(lock, service)
    except UserError as error:  # a release without network is one, too
        print(error)
        return
    print("\n".join(found) or f"nothing is known against {lock}")


if __name__ == "__main__":
    command(main)
