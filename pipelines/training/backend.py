"""Ray Train backend: sets up the workers' process group and watches for preemption.

Ray's ``TorchConfig`` could set up the group, but its module imports torch, so every process of a
node would load torch. Here only the workers do.
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

from pipelines.training import preemption


@dataclass
class ProcessGroupConfig(BackendConfig):
    """Process group of a node's workers: gloo on CPUs; with GPUs, NCCL as well."""

    timeout_s: float = 600.0
    """Seconds after which a collective that a rank does not join fails."""

    board: Any = None
    """Actor with the driver's stop requests; see :mod:`pipelines.training.preemption`."""

    node: str = ""
    """Id of the node that the workers train."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _TorchBackend

    @property
    def train_func_context(self) -> Callable[[], Any]:
        return _set_cuda_device


class _TorchBackend(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, ProcessGroupConfig)
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        worker_group.execute(
            _init_process_group,
            worker_group.execute_single(0, _free_address),
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            backend_config.timeout_s,
        )
        # `execute` runs in the actor's main thread, the only one that can install a signal handler.
        for rank in range(len(worker_group)):
            board = backend_config.board if rank == 0 else None
            worker_group.execute_single(rank, preemption.watch, board, backend_config.node)


def _free_address() -> tuple[str, int]:
    with socket.socket() as free:
        free.bind(("", 0))
        return ray.util.get_node_ip_address(), free.getsockname()[1]


def _init_process_group(address: tuple[str, int], backend: str, timeout_s: float) -> None:
    """Join the process group; sets the environment variables that `torchrun` sets."""
    from torch import distributed

    context = ray.train.get_context()
    os.environ |= {
        "MASTER_ADDR": address[0],
        "MASTER_PORT": str(address[1]),
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
    }
    distributed.init_process_group(backend, timeout=timedelta(seconds=timeout_s))


@contextmanager
def _set_cuda_device() -> Iterator[None]:
    """Select the worker's GPU in the thread that trains: the current device is per thread."""
    import torch

    if torch.cuda.is_available():
        from ray.train.torch import get_device

        device = get_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
    yield
