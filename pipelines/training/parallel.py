"""The processes that train one expert: what share each has, and what they agree on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.training.preemption import Stalled

BEAT_S = 1.0


@dataclass(frozen=True, kw_only=True)
class World:
    """Who this process is among those that share each batch."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: Any = None
    """A process group on the CPU, for words rather than gradients; None when alone."""

    writers: Any = None
    """Another, for the threads that write checkpoints."""

    @staticmethod
    def join(device: torch.device, timeout_s: float) -> World:
        """The world of the process group that is there, or a world of one."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return World(device=device)
        limit = timedelta(seconds=timeout_s)
        control, writers = (dist.new_group(backend="gloo", timeout=limit) for _ in range(2))
        return World(
            rank=dist.get_rank(),
            size=dist.get_world_size(),
            device=device,
            control=control,
            writers=writers,
        )

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of ``count`` things in a row, as even as can be."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same bits in each. float64 on the CPU"""
        values = values.double().cpu().contiguous()
        if self.control is not None:
            dist.all_reduce(values, group=self.control)
        return values

    def largest(self, values: Tensor) -> Tensor:
        values = values.double().cpu().contiguous()
        if self.control is not None:
            dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.control)
        return values

    def lost(self, error: RuntimeError) -> bool:
        """Whether an error is of processes that do not hear each other."""
        return self.control is not None and (
            isinstance(error, dist.DistError) or "gloo" in str(error).lower()
        )

    def everyones(self, value: Any) -> list[Any]:
        """What each process has, by rank."""
        if self.control is None:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.control)
        return found


class Agreement:
    """Whether anyone wants to stop, known to all at the same step.

    Asked at one step, answered at the next: nobody waits for the answer.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._work: Any = None

    def reached(self, mine: bool) -> bool:
        """Takes this process's word for this step; → what all said at the step before."""
        if self.world.control is None:
            return mine
        if self._work is not None:
            self._work.wait()
        agreed = bool(self._flag.item())
        self._flag.fill_(int(mine))
        self._work = dist.all_reduce(
            self._flag, op=dist.ReduceOp.MAX, group=self.world.control, async_op=True
        )
        return agreed


class Pulse:
    """Every process's word of how far it is, so that who is missing can be named."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._store = dist.distributed_c10d._get_default_store() if world.control else None
        self._said = 0.0

    def beat(self, images: int) -> None:
        now = time.monotonic()
        if self._store is not None and now - self._said > BEAT_S:
            self._said = now
            word = json.dumps({"images": images, "time": time.time()})
            self._store.set(f"pulse/{self.world.rank}", word)

    def missing(self, error: BaseException) -> Stalled:
        """What to raise when the processes lost each other: who is behind, or silent."""
        lines, now = [], time.time()
        for rank in range(self.world.size):
            try:
                self._store.wait([f"pulse/{rank}"], timedelta(seconds=2))  # type: ignore[union-attr]
                word = json.loads(self._store.get(f"pulse/{rank}"))  # type: ignore[union-attr]
            except (RuntimeError, ValueError) as lost:
                if rank == 0 or "Timeout" not in type(lost).__name__ + str(lost):
                    lines.append((float("inf"), f"rank {rank} does not answer"))
                    continue
                lines.append((float("inf"), f"rank {rank} never began"))
                continue
            silent = now - word["time"]
            lines.append((silent, f"rank {rank} was at {word['images']:,} {silent:.0f} s ago"))
        lines.sort(key=lambda line: -line[0])
        told = "; ".join(line for _, line in lines[:4])
        first = str(error).strip().splitlines()
        return Stalled(
            f"workers lost each other at rank {self.world.rank}: longest silent is {told} "
            f"({first[0][:200] if first else type(error).__name__})"
        )


def split(
    model: nn.Module,
    world: World,
    how: Literal["ddp", "fsdp", "hybrid"],
    blocks: nn.ModuleList,
    per_machine: int,
) -> nn.Module:
    """The model as it is called in training; the module given keeps its names and its weights.

    Args:
        blocks: its parts that ``fsdp`` gathers and frees one after another.
        per_machine: processes on each machine, which ``hybrid`` splits over.
    """
    if world.control is None:
        return model
    if how == "ddp":
        return nn.parallel.DistributedDataParallel(
            model, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    kind = world.device.type
    if how == "fsdp":
        mesh = init_device_mesh(kind, (world.size,))
    else:
        if world.size % per_machine:
            raise ValueError(
                f"`parallel: hybrid` needs the same number of workers on every machine, got "
                f"{world.size} in all and {per_machine} on one"
            )
        mesh = init_device_mesh(
            kind, (world.size // per_machine, per_machine), mesh_dim_names=("copies", "parts")
        )
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def without_sync(model: nn.Module) -> AbstractContextManager[Any]:
    """Gradients stay here: for all micro-batches but the last."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of one that is split; every process must ask."""
    full: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()
