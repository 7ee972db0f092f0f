"""Data parallelism: shares of a batch, collectives on the CPU, heartbeats, DDP and FSDP."""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.training.preemption import Stalled

HEARTBEAT_INTERVAL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Communicator:
    """This process's rank and device, and the groups through which it talks to the others."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: Any = None
    """A gloo group for metrics and messages, apart from gradients; None for a single process."""

    writers: Any = None
    """A second gloo group, for the threads that write checkpoints."""

    @staticmethod
    def join(device: torch.device, timeout_s: float) -> Communicator:
        """The communicator of the initialised process group, or of this process alone.

        Args:
            timeout_s: seconds after which a collective that a rank does not join fails.
        """
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return Communicator(device=device)
        limit = timedelta(seconds=timeout_s)
        control, writers = (dist.new_group(backend="gloo", timeout=limit) for _ in range(2))
        return Communicator(
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
        """This process's slice of ``count`` consecutive items; slices differ by one at most."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """The sum over all processes: float64 on the CPU, the same bits in each."""
        values = values.double().cpu().contiguous()
        if self.control is not None:
            dist.all_reduce(values, group=self.control)
        return values

    def all_reduce_max(self, values: Tensor) -> Tensor:
        """The maximum over all processes: float64 on the CPU."""
        values = values.double().cpu().contiguous()
        if self.control is not None:
            dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.control)
        return values

    def is_connection_error(self, error: RuntimeError) -> bool:
        """Whether an error means that the processes lost contact with each other."""
        return self.control is not None and (
            isinstance(error, dist.DistError) or "gloo" in str(error).lower()
        )

    def all_gather(self, value: Any) -> list[Any]:
        """The value of each process, by rank."""
        if self.control is None:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.control)
        return found


class StopConsensus:
    """Lets all processes learn at the same step that one of them wants to stop.

    A request made at one step is known at the next, so no step waits for the reduction.
    """

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._work: Any = None

    def any_stopping(self, wants_stop: bool) -> bool:
        """Submit this process's wish to stop; return whether any process had one a step ago."""
        if self.comm.control is None:
            return wants_stop
        if self._work is not None:
            self._work.wait()
        agreed = bool(self._flag.item())
        self._flag.fill_(int(wants_stop))
        self._work = dist.all_reduce(
            self._flag, op=dist.ReduceOp.MAX, group=self.comm.control, async_op=True
        )
        return agreed


class Heartbeat:
    """Publishes the progress of every process, so that a stalled rank can be named."""

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm
        self._store = dist.distributed_c10d._get_default_store() if comm.control else None
        self._last_beat = 0.0

    def beat(self, images: int) -> None:
        """Publish this process's progress, at most once in ``HEARTBEAT_INTERVAL_S``."""
        now = time.monotonic()
        if self._store is not None and now - self._last_beat > HEARTBEAT_INTERVAL_S:
            self._last_beat = now
            beat = json.dumps({"images": images, "time": time.time()})
            self._store.set(f"heartbeat/{self.comm.rank}", beat)

    def stalled(self, error: BaseException) -> Stalled:
        """The error to raise when contact was lost; it names the ranks that are silent longest."""
        lines, now = [], time.time()
        for rank in range(self.comm.size):
            try:
                self._store.wait([f"heartbeat/{rank}"], timedelta(seconds=2))  # type: ignore[union-attr]
                beat = json.loads(self._store.get(f"heartbeat/{rank}"))  # type: ignore[union-attr]
            except (RuntimeError, ValueError) as lost:
                if rank == 0 or "Timeout" not in type(lost).__name__ + str(lost):
                    lines.append((float("inf"), f"rank {rank} does not answer"))
                    continue
                lines.append((float("inf"), f"rank {rank} never started"))
                continue
            age_s = now - beat["time"]
            lines.append((age_s, f"rank {rank} was at {beat['images']:,} images {age_s:.0f} s ago"))
        lines.sort(key=lambda line: -line[0])
        silent = "; ".join(line for _, line in lines[:4])
        first = str(error).strip().splitlines()
        return Stalled(
            f"rank {self.comm.rank} lost contact with other workers, longest silent: {silent} "
            f"({first[0][:200] if first else type(error).__name__})"
        )


def parallelize(
    model: nn.Module,
    comm: Communicator,
    strategy: Literal["ddp", "fsdp", "hybrid"],
    blocks: nn.ModuleList,
    per_machine: int,
) -> nn.Module:
    """Wrap a model for training on several processes; return what training calls.

    The given module keeps its parameter names. A single process gets the model back unchanged.

    Args:
        strategy: ``ddp`` replicates the weights, ``fsdp`` shards them over all processes,
            ``hybrid`` shards them within a machine and replicates them across machines.
        blocks: submodules that FSDP gathers and frees one after another.
        per_machine: processes on each machine; ``hybrid`` shards over them.

    Raises:
        ValueError: ``hybrid`` with a different number of processes on some machine.
    """
    if comm.control is None:
        return model
    if strategy == "ddp":
        return nn.parallel.DistributedDataParallel(
            model, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    kind = comm.device.type
    if strategy == "fsdp":
        mesh = init_device_mesh(kind, (comm.size,))
    else:
        if comm.size % per_machine:
            raise ValueError(
                f"`parallel: hybrid` needs the same number of workers on every machine, got "
                f"{comm.size} in all and {per_machine} on one"
            )
        mesh = init_device_mesh(
            kind, (comm.size // per_machine, per_machine), mesh_dim_names=("replicate", "shard")
        )
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def no_sync(model: nn.Module) -> AbstractContextManager[Any]:
    """Skip DDP's gradient all-reduce, for all micro-batches but the last."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()
    return nullcontext()
