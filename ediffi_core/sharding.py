"""Tensors that several processes share (FSDP): from shards to the full tensor and back."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one, any other tensor as it is; a collective call."""
    gather: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def sharded_like(parameter: Tensor, full: Tensor) -> Tensor:
    """A full tensor, sharded as a parameter is; no process sends anything."""
    if not hasattr(parameter, "full_tensor"):
        return full
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(parameter, DTensor)
    mesh = parameter.device_mesh
    everywhere = DTensor.from_local(full, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=parameter.placements)
