"""One training by several processes, a device each. The stage's own process starts them and waits; they do what it does
as far as the end of the training, and leave a checkpoint there with nothing left to do. The stage goes on from that as
after any kill, so one process alone, with the plain model in its hands, measures, logs and writes artefacts.

One that is killed ends the others, and all begin again at the last checkpoint: the agent of torchrun (PyTorch's
torch.distributed.elastic), on this machine alone. They meet in files and talk over the loopback device.
"""

import logging
import os
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stages.lib.frame import files, processes, tracking
from stages.lib.frame.errors import UserError
from stages.lib.nets import anatomy
from stages.lib.training.config import Training

RESTARTS = 3  # after a process that was killed or failed
COMPLAINT = "complaint"  # the file in which a process leaves the message of its UserError
ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # the agent's server would listen to every network
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # DDP warns where all weights were used
}


class Trained(BaseException):
    """How a process that only trains ends; no error, so nothing on the way shall catch it."""


# Processes


def start(main: Callable[..., None], arguments: dict[str, Any], p: Training | None) -> None:
    """Train in as many processes as `p` wants, if it wants several and this is none of them; returns when the last
    checkpoint is written. A stage that trains says this of its `main(**arguments)` before it loads anything."""
    if p is None or p.devices == 1 or active():
        return
    if 0 < (there := torch.cuda.device_count()) < p.devices:
        raise UserError(f"params.yaml: training.devices is {p.devices}, and this machine has {there}")
    stage = f"{main.__globals__['__spec__'].name}:{main.__name__}"  # what is run as __main__ can't be sent as it is
    with TemporaryDirectory() as folder:
        launch(stage, arguments, p.devices, Path(folder))


def launch(stage: str, arguments: dict[str, Any], count: int, folder: Path) -> None:
    """`count` processes that `work`, all again if one fails. What a user can put right is no failure, and told here."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint=str(folder / "agent"),
        rdzv_configs={"store_type": "file"},
        local_addr="127.0.0.1",
        max_restarts=RESTARTS,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs"), local_ranks_filter={0}),
        signals_to_handle="",  # they end with this process, however it ends
    )
    os.environ |= ENVIRONMENT
    logging.disable()  # the agent tells every end of a process with its own stack
    try:
        elastic_launch(config, work)(stage, arguments, folder)
    finally:
        logging.disable(logging.NOTSET)
    if (complaint := folder / COMPLAINT).exists():
        raise UserError(complaint.read_text())


def work(stage: str, arguments: dict[str, Any], folder: Path) -> None:
    """What each of the processes does: the stage, as far as the end of its training."""
    if (complaint := folder / COMPLAINT).exists():
        return
    processes.end_with_the_stage()
    os.environ[tracking.SILENT] = "1"
    number, count, restart = (int(os.environ[n]) for n in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"))
    if restart and not number:
        print(f"a process of the training was ended: all go on from the last checkpoint ({restart} of {RESTARTS})")
    if torch.cuda.is_available():
        torch.cuda.set_device(number)
    else:
        torch.set_num_threads(max(1, processes.available() // count))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, f"file://{folder}/meeting-{restart}", rank=number, world_size=count)
    try:
        pkgutil.resolve_name(stage)(**arguments)
    except UserError as error:
        complaint.write_text(str(error))
        raise
    except Trained:
        dist.destroy_process_group()


def active() -> bool:
    """Whether this is one of several processes."""
    return dist.is_initialized()


def rank() -> int:
    """Its number; 0 where it is the only one."""
    return dist.get_rank() if active() else 0


def totals(values: list[float], device: torch.device) -> list[float]:
    """Sums over the processes."""
    if not active():
        return values
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return sums.tolist()


def decided(here: bool) -> bool:
    """What is so in the first process, for all to do the same."""
    if not active():
        return here
    found = torch.tensor([here], dtype=torch.int32)
    dist.broadcast(found, src=0)
    return bool(found)


def seed(number: int, step: int) -> None:
    """Of every process its own, whatever the state it was in; one alone goes on in its state."""
    if active():
        torch.manual_seed(hash((number, step, rank())))


# The model


class Step(nn.Module):
    """The loss of a part as a forward pass, which is what DDP and FSDP can wrap: a technique may ask the model several
    times, or modules beside it."""

    def __init__(self, model: nn.Module, loss: Callable[[Any], Any]):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, part: Any) -> Any:
        return self.loss(part)


def sharded(model: nn.Module, loss: Callable[[Any], Any], p: Training, mixed: bool) -> Callable[[Any], Any]:
    """`loss`, by fsdp of a model of which each process holds a share of every weight, gradient and moment, and gathers
    a block when it is its turn (Zhao et al. 2023, arXiv:2304.11277); in 16 bits where `mixed` precision is asked for,
    while gradients are averaged in 32. The model's Parameters are others then."""
    if not active() or p.parallel != "fsdp":
        return loss
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    kind: Any = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if mixed else {}
    for block in anatomy.blocks(model):
        fully_shard(block, mp_policy=MixedPrecisionPolicy(**kind))
    step = Step(model, loss)
    fully_shard(step, mp_policy=MixedPrecisionPolicy(**kind, cast_forward_inputs=False))
    return step


def replicated(model: nn.Module, loss: Callable[[Any], Any], p: Training) -> Callable[[Any], Any]:
    """`loss`, by ddp of a model of which each process holds all, and whose gradients are then averaged: those of the
    Parameters as they are now, so a parametrization must not come later."""
    if not active() or p.parallel != "ddp":
        return loss
    from torch.nn.parallel import DistributedDataParallel

    settings: Any = {"find_unused_parameters": True, "gradient_as_bucket_view": True, "forward_sync_buffers": False}
    return DistributedDataParallel(Step(model, loss), **settings)


def require_same(model: nn.Module, p: Training) -> None:
    """Refuse weights that went apart: a gradient that was not averaged would be seen nowhere else."""
    if not active() or p.parallel != "ddp":
        return
    sums = torch.stack([weight.detach().double().sum() for weight in model.parameters() if weight.requires_grad])
    both = torch.stack([sums, -sums])
    dist.all_reduce(both, dist.ReduceOp.MAX)
    if not torch.equal(both[0], -both[1]):
        raise RuntimeError("the weights of the processes have gone apart")


def unshared(loss: Callable[[Any], Any], last: bool) -> AbstractContextManager[None]:
    """Within, gradients stay in the process, for those of the last part of a batch to take them along. fsdp shares them
    with each part: what it would keep are whole gradients."""
    return nullcontext() if last or not hasattr(loss, "no_sync") else loss.no_sync()  # type: ignore[attr-defined]


def of_whole(change: Callable[[Tensor], Tensor], matrix: Tensor) -> Tensor:
    """`change` of a matrix, or the share of it that belongs to a share of the matrix."""
    if not active():
        return change(matrix)
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(matrix, DTensor):
        return change(matrix)
    changed = change(matrix.full_tensor())
    return distribute_tensor(changed, matrix.device_mesh, matrix.placements, src_data_rank=None)


# Checkpoints


@contextmanager
def sealing(folder: Path) -> Iterator[Path]:
    """`files.sealing` by the first process, of what all write."""
    if not active():
        with files.sealing(folder) as temporary:
            yield temporary
        return
    place: list[Path | None] = [None]
    with files.sealing(folder) if rank() == 0 else nullcontext() as place[0]:
        dist.broadcast_object_list(place, src=0)
        assert place[0]
        yield place[0]
        dist.barrier()
    dist.barrier()


def write(state: dict[str, Tensor], folder: Path) -> None:
    """Into safetensors: one file, or one of each process with its shares, since the own format of PyTorch's distributed
    checkpoints keeps their contents in a pickle."""
    if not active():
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in state.items()}, folder / "state.safetensors")
        return
    import torch.distributed.checkpoint as dcp

    dcp.save(state, storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))


def read(state: dict[str, Tensor], folder: Path) -> None:
    """Into the tensors, whole ones or shares, whoever wrote them."""
    import warnings

    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings(action="ignore"):  # that it is alone
        dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(str(folder)))


def kept(folder: Path) -> dict[str, torch.Size]:
    """Name -> shape of what lies there."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    about: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: tensor.size for name, tensor in about.items()}
