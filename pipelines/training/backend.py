"""How the workers of a training node come together: one process group, and an ear for notices.

Ray's own ``TorchConfig`` would do the first. But its module imports torch, and so would every
process that a node has beside its workers; here only the workers do.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig

from pipelines.training import preemption as notice


@dataclass
class ProcessGroup(BackendConfig):
    """Of a node's workers: NCCL between GPUs, gloo between CPUs, and both where there are GPUs."""

    timeout_s: float = 600.0
    """After which a collective that a rank does not join is an error."""

    board: Any = None
    """Where the driver says that it was told to stop; see :func:`pipelines.training.preemption`."""

    node: str = ""
    """Which one it is."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _Joining

    @property
    def train_func_context(self) -> Callable[[], Any]:
        return _on_its_gpu


class _Joining(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, ProcessGroup)
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        worker_group.execute(
            _join,
            worker_group.execute_single(0, _free_address),
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            backend_config.timeout_s,
        )
        # `execute` runs in the actor's main thread, where alone a signal can be caught.
        for rank in range(len(worker_group)):
            board = backend_config.board if rank == 0 else None
            worker_group.execute_single(rank, notice.listen, board, backend_config.node)


def _free_address() -> tuple[str, int]:
    with socket.socket() as free:
        free.bind(("", 0))
        return ray.util.get_node_ip_address(), free.getsockname()[1]


def _join(address: tuple[str, int], backend: str, timeout_s: float) -> None:
    """Takes this worker's place in the process group; `torchrun` sets the same variables."""
    from torch import distributed

    here = ray.train.get_context()
    os.environ |= {
        "MASTER_ADDR": address[0],
        "MASTER_PORT": str(address[1]),
        "RANK": str(here.get_world_rank()),
        "WORLD_SIZE": str(here.get_world_size()),
        "LOCAL_RANK": str(here.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(here.get_local_world_size()),
        "NODE_RANK": str(here.get_node_rank()),
    }
    distributed.init_process_group(backend, timeout=timedelta(seconds=timeout_s))


@contextmanager
def _on_its_gpu() -> Iterator[None]:
    """A thread's current GPU is its own to set, so it is set in the one that trains."""
    import torch

    if torch.cuda.is_available():
        from ray.train.torch import get_device

        device = get_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
    yield
