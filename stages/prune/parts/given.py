"""What a technique works from: rows and their tokenizer, and what a kill must not undo, scores and trainings."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages.lib.frame import files
from stages.lib.nets import losses
from stages.lib.store import tokens
from stages.lib.training import loop
from stages.lib.training.config import Training

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

ROWS = 1024  # that are counted at a time


@dataclass
class Given:
    rows: Tensor  # (N, T) int64, for calibration; none if the params ask for none
    training_rows: "np.ndarray | tokens.Translated"  # all of them, (N, T), in the model's numbers
    tokenizer: "PreTrainedTokenizerFast"  # the model's; a technique may put a smaller one in its place
    scores: Path  # a folder for what the rows say of the model, whatever shape is asked for
    trainings: Path  # a folder for what this very variant has trained
    trained: int = 0  # trainings so far

    def once(self, score: Callable[[], dict[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
        """Scores of the rows that do not depend on what is asked for: variants that differ in shape share them."""
        from safetensors.torch import load_file, save_file

        if not files.sealed(self.scores):
            found = {name: values.cpu().contiguous() for name, values in score().items()}
            with files.sealing(self.scores) as folder:
                save_file(found, folder / "scores.safetensors")
        return load_file(self.scores / "scores.safetensors", device=str(device))

    def counts(self) -> Tensor:
        """How often each token is in the training rows, (V,) int64."""
        total = torch.zeros(max(self.tokenizer.get_vocab().values()) + 1, dtype=torch.int64)
        for first in range(0, len(self.training_rows), ROWS):
            ids = tokens.batch(self.training_rows, range(first, min(first + ROWS, len(self.training_rows))))
            total += ids.flatten().bincount(minlength=len(total))
        return total

    def train(self, model: "PreTrainedModel", p: Training) -> None:
        """Next-token training on the training rows, zeros held; what was done before a kill is not done again."""
        from safetensors.torch import load_model, save_model

        self.trained += 1
        result = self.trainings / f"{self.trained}-done"
        if files.sealed(result):
            load_model(model, result / "model.safetensors")
            return
        batch = tokens.batches(self.training_rows, p.part_size, p.seed)

        def loss(ids_BT: Tensor) -> Tensor:
            return losses.next_token(model(input_ids=ids_BT, use_cache=False).logits, ids_BT)

        held = p.model_copy(update={"keep_zeros": True})
        loop.fit(model, batch, loss, held, [], self.trainings / str(self.trained))
        with files.sealing(result) as folder:
            save_model(model, str(folder / "model.safetensors"))

    def forget(self) -> None:
        """The trainings, once their result is an artefact; scores stay for other variants."""
        files.remove(self.trainings)
