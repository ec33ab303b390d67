"""infra/ by the tools of those who run it (the extra `manifests`), and what they don't look at: secrets, open ports."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

COMPOSE, KUBERNETES = Path("infra/compose.yaml"), Path("infra/kubernetes")
HADOLINT = Path(sys.prefix, "bin", "hadolint")
VERSION = "1.32"  # of Kubernetes
RAY = {  # ray-project/kuberay, ray-operator/apis/ray/v1/raycluster_types.go: what must be there, what may
    "cluster": ({"headGroupSpec"}, {"workerGroupSpecs", "enableInTreeAutoscaling", "autoscalerOptions"}),
    "head": ({"rayStartParams", "template"}, set()),
    "worker": ({"groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"}, {"replicas"}),
}


def documents(file: Path) -> list[dict]:
    return list(YAML(typ="safe").load_all(file))


def services() -> dict:
    [compose] = documents(COMPOSE)
    return compose["services"]


def pods() -> list[tuple[str, dict]]:
    """Every pod template of the manifests."""
    found = [each for file in sorted(KUBERNETES.glob("*.yaml")) for each in documents(file)]
    plain = [(each["metadata"]["name"], each["spec"]["template"]) for each in found if each["kind"] == "Deployment"]
    [ray] = [each["spec"] for each in found if each["kind"] == "RayCluster"]
    groups = [("head", ray["headGroupSpec"]), *((each["groupName"], each) for each in ray["workerGroupSpecs"])]
    return plain + [(name, group["template"]) for name, group in groups]


def test_compose_keeps_the_specification():
    pytest.importorskip("check_jsonschema")
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not HADOLINT.exists(), reason="the extra `manifests`")
def test_the_dockerfile_passes_hadolint():
    done = subprocess.run([HADOLINT, "infra/Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", sorted(KUBERNETES.glob("*.yaml")), ids=str)
def test_a_manifest_is_one_of_its_kind(file):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for document in documents(file):
        if document["apiVersion"].partition("/")[0] in ("v1", "apps"):
            kubernetes_validate.validate(document, VERSION, strict=True)
        if document["kind"] == "RayCluster":
            assert_fields(document["spec"], "cluster")
            assert_fields(document["spec"]["headGroupSpec"], "head")
            for group in document["spec"]["workerGroupSpecs"]:
                assert_fields(group, "worker")


def assert_fields(given: dict, kind: str) -> None:
    needed, allowed = RAY[kind]
    assert needed <= set(given) <= needed | allowed


@pytest.mark.parametrize(("name", "template"), pods(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_pod_is_one_that_a_restricted_namespace_takes(name, template):
    """Pod Security Standards, level `restricted`."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": template["spec"]}
    kubernetes_validate.validate(pod, VERSION, strict=True)
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["spec"]["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_the_manifests_are_listed():
    [listed] = documents(KUBERNETES / "kustomization.yaml")
    assert {*listed["resources"], "kustomization.yaml"} == {file.name for file in KUBERNETES.glob("*.yaml")}


def test_a_port_is_open_on_this_machine_alone():
    ports = [port for service in services().values() for port in service.get("ports", [])]
    assert ports and all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports)


def test_a_secret_comes_from_the_environment_and_has_no_default():
    """`${NAME:?}` lets compose stop where it is not set."""
    used = re.findall(r"\$\{?\w+[^}]*\}?", COMPOSE.read_text())
    assert used and all(re.fullmatch(r"\$\{[A-Z0-9_]+:\?\}", each) for each in used)
    named = re.compile("PASSWORD|SECRET|KEY|AUTH_STRING")
    given = [
        value
        for service in services().values()
        for name, value in service.get("environment", {}).items()
        if named.search(name)
    ]
    assert given and all(":?}" in value for value in given)
