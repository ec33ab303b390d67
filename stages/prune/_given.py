"""What some techniques work from instead of rows, kept in a folder that outlives a kill: scores, and trainings."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stages.lib import artefacts, losses, training
from stages.lib import tokens as rows


def scores(technique: Any, model: nn.Module, rows_NT: Tensor, p: Any, place: Path) -> dict[str, Tensor]:
    """The technique's importance scores; those that are in `place` already need no forward pass."""
    from safetensors.torch import load_file, save_file

    if not place.is_dir():
        found = {name: each.cpu().contiguous() for name, each in technique.score(model, rows_NT, p).items()}
        with artefacts.writing(place) as folder:
            save_file(found, folder / "scores.safetensors")
    return load_file(place / "scores.safetensors", device=str(next(model.parameters()).device))


def trainer(tokens: Path, p: training.Training, place: Path) -> Callable[[Any], None]:
    """A function that trains a model on the training rows, zeros held, as often as it is called; what one of its
    trainings came to is kept in `place`, so that after a kill it is not done again."""
    from safetensors.torch import load_model, save_model

    p = p.model_copy(update={"keep_zeros": True})
    batch = partial(rows.step_batch, rows.load(tokens, "train"), p.batch_size // p.accumulation)
    done = 0

    def train(model: Any) -> None:
        nonlocal done
        done += 1
        result = place / f"{done}.safetensors"
        if result.is_file():
            load_model(model, result)
            return

        def loss(ids_BT: Tensor) -> Tensor:
            return losses.next_token(model(input_ids=ids_BT, use_cache=False).logits, ids_BT)

        training.fit(model, batch, loss, p, [], place / str(done))
        with artefacts.writing(result) as partial_file:
            save_model(model, str(partial_file))

    return train
