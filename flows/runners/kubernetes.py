"""As a Job of Kubernetes, by kubectl and its current context. Not tried on a cluster: the Job is held to Kubernetes'
own schema, and that is all."""

import json
import shutil
import subprocess
from typing import Any, Literal

from pydantic import NonNegativeInt

from flows import warm
from flows.runners import elsewhere
from flows.runners.elsewhere import Elsewhere, Tell
from stages.lib.frame.errors import UserError

DAY, POLL = 24 * 60 * 60, 5  # seconds


class Kubernetes(Elsewhere):
    on: Literal["kubernetes"]
    image: str  # with Orchard's environment, and its code as the working directory
    namespace: str = "default"
    secret: str | None = None  # whose entries become environment variables: keys for DVC's remote
    retries: NonNegativeInt = 1

    def require(self) -> None:
        super().require()
        if not shutil.which("kubectl"):
            raise UserError("stages that run on kubernetes need kubectl, and this machine has none")

    def run(self, stage: str, job: str, tell: Tell) -> bool:
        name = name_of(job)
        created = self.kubectl("create", "--filename=-", said=json.dumps(self.manifest(stage, job)))
        if created.returncode:
            tell(created.stderr.encode())
            return False
        while (ended := self.ended(name)) is None:
            if warm.STOPPED.wait(POLL):
                self.kubectl("delete", f"job/{name}")
                return False
        tell(self.kubectl("logs", f"job/{name}").stdout.encode())
        return ended == "Complete"

    def ended(self, name: str) -> str | None:
        """Complete, Failed, or None while it runs."""
        found = self.kubectl("get", f"job/{name}", "--output=json")
        if found.returncode:
            return "Failed"  # somebody removed it
        conditions = json.loads(found.stdout)["status"].get("conditions", [])
        held = [each["type"] for each in conditions if each["status"] == "True"]
        return next((each for each in held if each in ("Complete", "Failed")), None)

    def kubectl(self, *words: str, said: str | None = None) -> subprocess.CompletedProcess[str]:
        command = ["kubectl", f"--namespace={self.namespace}", *words]
        return subprocess.run(command, input=said, capture_output=True, text=True)

    def manifest(self, stage: str, job: str) -> dict[str, Any]:
        memory = str(int(self.memory * 1e9))
        gpus = {"nvidia.com/gpu": str(self.gpus)} if self.gpus else {}
        container = {
            "name": "stage",
            "image": self.image,
            "command": elsewhere.command(stage, job),
            "resources": {
                "requests": {"cpu": str(self.cpus), "memory": memory, **gpus},
                "limits": {"memory": memory, **gpus},
            },
        }
        if self.secret:
            container["envFrom"] = [{"secretRef": {"name": self.secret}}]
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name_of(job), "labels": {"app.kubernetes.io/name": "orchard"}},
            "spec": {
                "backoffLimit": self.retries,
                "ttlSecondsAfterFinished": DAY,
                "template": {"spec": {"restartPolicy": "Never", "containers": [container]}},
            },
        }


def name_of(job: str) -> str:
    """As Kubernetes allows: the job's last part, lower-case letters and digits."""
    return f"orchard-{job.rpartition('-')[2]}"
