"""As a job of Slurm, by `sbatch --wait`. Slurm starts it in this folder and with this environment, which its nodes
usually share; what the stage reads and makes goes through DVC's remote all the same."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

from flows import warm
from flows.runners import elsewhere
from flows.runners.elsewhere import Elsewhere, Tell
from stages.lib.frame.errors import UserError


class Slurm(Elsewhere):
    on: Literal["slurm"]
    partition: str | None = None
    time: str | None = None  # as sbatch reads it: D-HH:MM:SS, minutes, ...

    def require(self) -> None:
        super().require()
        if not shutil.which("sbatch"):
            raise UserError("stages that run on slurm need sbatch, and this machine has none")

    def run(self, stage: str, job: str, tell: Tell) -> bool:
        written = Path(".dvc/tmp", f"{job}.log").absolute()
        written.touch()
        command = shlex.join(elsewhere.command(stage, job, sys.executable))
        process = subprocess.Popen(
            self.submit(stage, written, command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout
        said = process.stdout.readline()  # at once: number;cluster, or why Slurm refuses
        if not (number := said.partition(";")[0].strip()).isdigit():
            tell(f"{said}{process.stdout.read()}".encode())
            return False
        with written.open("rb") as output:
            ended = False
            while not ended:
                ended = process.poll() is not None
                if chunk := output.read():
                    tell(chunk)
                if not ended and warm.STOPPED.wait(1):
                    subprocess.run(["scancel", number], check=True)
                    process.wait()
        written.unlink()
        return process.returncode == 0

    def submit(self, stage: str, output: Path, command: str) -> list[str]:
        options = {
            "job-name": stage,
            "output": output,
            "cpus-per-task": self.cpus,
            "mem": f"{int(self.memory * 1000)}M",
            "gpus": self.gpus or None,
            "partition": self.partition,
            "time": self.time,
            "wrap": command,
        }
        given = [f"--{name}={value}" for name, value in options.items() if value is not None]
        return ["sbatch", "--wait", "--parsable", *given]
