"""What a technique works from: calibration rows, and what a kill must not undo, scores and trainings."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stages.lib.frame import files
from stages.lib.frame.params import Calibration
from stages.lib.nets import losses
from stages.lib.store import tokens
from stages.lib.training import loop
from stages.lib.training.config import Training

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Given:
    """`rows` (N, T) int64 are the calibration rows, none if the params ask for none."""

    def __init__(self, folder: Path, calibration: Calibration | None, scores: Path, trainings: Path):
        self.tokens, self.scores, self.trainings, self.trained = folder, scores, trainings, 0
        empty = torch.empty(0, 0, dtype=torch.int64)
        self.rows = tokens.sample(folder, calibration.rows, calibration.seed) if calibration else empty

    def once(self, score: Callable[[], dict[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
        """Scores of the rows that do not depend on what is asked for: variants that differ in shape share them."""
        from safetensors.torch import load_file, save_file

        if not self.scores.is_dir():
            found = {name: each.cpu().contiguous() for name, each in score().items()}
            with files.writing(self.scores) as folder:
                save_file(found, folder / "scores.safetensors")
        return load_file(self.scores / "scores.safetensors", device=str(device))

    def train(self, model: "PreTrainedModel", p: Training) -> None:
        """Next-token training on the training rows, zeros held; what was done before a kill is not done again."""
        from safetensors.torch import load_model, save_model

        self.trained += 1
        result = self.trainings / f"{self.trained}.safetensors"
        if result.is_file():
            load_model(model, result)
            return
        batch = partial(tokens.step_batch, tokens.load(self.tokens, "train"), p.batch_size // p.accumulation)

        def loss(ids_BT: Tensor) -> Tensor:
            return losses.next_token(model(input_ids=ids_BT, use_cache=False).logits, ids_BT)

        held = p.model_copy(update={"keep_zeros": True})
        loop.fit(model, batch, loss, held, [], self.trainings / str(self.trained))
        with files.writing(result) as partial_file:
            save_model(model, str(partial_file))

    def forget(self) -> None:
        """The trainings, once their result is an artefact; scores stay for other variants."""
        files.remove(self.trainings)
