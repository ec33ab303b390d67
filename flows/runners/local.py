"""On this machine, in a child of the warm process: heavy stages one at a time, the others beside them."""

import os
from collections.abc import Callable
from threading import Semaphore
from typing import Literal

from flows import warm
from flows.plan import Step
from flows.runners import Runner

HEAVY, LIGHT = Semaphore(1), Semaphore(os.cpu_count() or 1)  # heavy: trainings, `meta: {heavy: true}` in dvc.yaml


class Local(Runner):
    on: Literal["local"] = "local"

    def reproduce(self, step: Step, environment: dict[str, str], tell: Callable[[bytes], None]) -> str | None:
        with HEAVY if step.meta.get("heavy") else LIGHT:
            return warm.reproduce(step.name, environment, tell)
