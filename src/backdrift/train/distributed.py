"""One training on several processes that torchrun started: how they share a step, and how they stay one.

Every process makes the same decisions from the same numbers. Each takes its part of a batch's places in the stream, in
order; the losses are gathered in that order; so what follows (metrics, times by loss, the guard) is what one process
would have computed, and neither the order of the data nor a checkpoint depends on how many there are. Gradients are
means over processes of equal parts, hence the mean over the batch.

A network is held in one of two ways. Replicated (`DistributedDataParallel`): each process has all of it, and only the
gradients travel. Sharded (FSDP2, `fully_shard`): each holds its share of every tensor, of the average and of the
optimiser's moments too, and the weights of a block travel when the block is used.

Process 0 alone writes and tells. Dropout is drawn from (seed, step, process), so its masks, unlike the data, are others
at another number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from backdrift import processes
from backdrift.errors import UserError

TIMEOUT = timedelta(minutes=10)  # for a process that hangs; one that ends is noticed at once


class ProcessLost(UserError):
    """Another process of the job ended or stopped answering; the message says what is saved."""


@dataclass(frozen=True)
class World:
    """The processes of a job, and which this is. device: its own. Alone, every method is free."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and tells."""
        return self.rank == 0

    def part(self, places: Tensor) -> Tensor:
        """This process's part of the places (B,), in order."""
        return places.tensor_split(self.size)[self.rank]

    def gather(self, columns: Sequence[Tensor]) -> list[Tensor]:
        """Columns (b,) of every process behind each other, (B,) each; they come back in their dtype and place."""
        if self.size == 1:
            return list(columns)
        mine = torch.stack([column.to(self.device, torch.float64) for column in columns])
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(everyone, mine)
        return [row.to(column) for row, column in zip(torch.cat(everyone, 1), columns, strict=True)]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(int(flag), device=self.device)))

    def everyone(self, value: Any) -> list[Any]:
        """The value of every process, by rank."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def told(self, value: Any) -> Any:
        """What process 0 says."""
        return self.everyone(value)[0]


ALONE = World()


@contextmanager
def join(device: torch.device) -> Iterator[World]:
    """The processes that torchrun started, as one `World`; alone without torchrun. Uses a group that exists already.

    Raises `UserError` where there are more processes than accelerators, `ProcessLost` where one ends inside the block.
    """
    if processes.count() == 1 and not (dist.is_available() and dist.is_initialized()):
        yield World(device=device)
        return
    device = _own(device)
    found = dist.is_initialized()
    if not found:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    except RuntimeError as error:
        if not lost(error):
            raise
        raise ProcessLost("Another process of this job has ended, so this one cannot go on.") from error
    # not after an error: the group must outlive it, so that the process which knows what happened is the first to tell
    if not found:
        dist.destroy_process_group()


def _own(device: torch.device) -> torch.device:
    if device.type != "cuda" or processes.count() == 1:  # the latter in a group of the caller's own, device and all
        return device
    there, mine = torch.cuda.device_count(), processes.local_rank()
    if mine >= there:
        raise UserError(f"torchrun started more processes than this machine has GPUs; use --nproc-per-node {there}.")
    torch.cuda.set_device(mine)
    return torch.device("cuda", mine)


def replicate(module: nn.Module, world: World) -> nn.Module:
    """The module as every process calls it, from process 0's weights; gradients become means over processes."""
    return DistributedDataParallel(module) if world.size > 1 else module


def shard(module: nn.Module, world: World) -> None:
    """Leave each process its share of every parameter, in place.

    The blocks of each `ModuleList` are gathered one at a time, what is outside them together.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for name, parameter in module.named_parameters():
        if parameter.ndim == 0:
            raise UserError(f"PyTorch cannot shard a network with single numbers among its weights ({name}).")
    mesh = init_device_mesh(world.device.type, (world.size,))
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    for block in (block for part in lists for block in part if not isinstance(block, nn.ModuleList)):
        fully_shard(block, mesh=mesh)
    # resharded even at the top: an average is changed between two uses, and no backward pass gives its weights back
    fully_shard(module, mesh=mesh, reshard_after_forward=True)


def average_gradients(module: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass ends in the mean over processes; no, where others of the same step follow."""
    if isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = wanted
    elif hasattr(module, "set_requires_gradient_sync"):
        module.set_requires_gradient_sync(wanted)


def is_sharded(value: Tensor) -> bool:
    """Whether this process holds only its share (a DTensor, whose class a single process need not import)."""
    return hasattr(value, "full_tensor")


def whole(value: Tensor) -> Tensor:
    """All of the tensor, on every process; every process must ask."""
    return value.full_tensor() if is_sharded(value) else value


def local(value: Tensor) -> Tensor:
    """What this process holds of the tensor."""
    return value.to_local() if is_sharded(value) else value


def share_of(value: Tensor, target: Tensor) -> Tensor:
    """`value`, which every process has whole, as `target` is held; nothing travels."""
    if not is_sharded(target):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh = target.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, target.placements, src_data_rank=None)


def refuse_disagreement(settings: Mapping[str, Any], world: World) -> None:
    """Raises `UserError` naming the first setting that is another in another process."""
    for rank, other in enumerate(world.everyone(dict(settings))):
        for name in [*settings, *other]:
            ours, theirs = settings.get(name), other.get(name)
            if ours != theirs:
                raise UserError(
                    f"The processes of this job disagree: {name} is {theirs} in process {rank} and {ours} in process "
                    f"{world.rank}; give all the same data and options."
                )


def lost(error: BaseException) -> bool:
    """Whether the error says that another process no longer answers."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def speaks() -> bool:
    """Whether this process tells the user about the error that ends the job: the first of them to ask does.

    Before the processes have met, the first on each machine.
    """
    if processes.count() == 1:
        return True
    if not dist.is_initialized():
        return processes.local_rank() == 0
    try:
        return dist.distributed_c10d._get_default_store().add("backdrift told", 1) == 1
    except RuntimeError:  # whoever kept the count is gone
        return True
