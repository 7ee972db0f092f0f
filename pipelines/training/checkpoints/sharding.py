"""Sharding: which rows of a tensor a process holds, writes and reads back."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from pipelines.training.checkpoints.part import DTYPES, METADATA, Piece
from pipelines.training.process_group import InvalidCheckpoint, NonFinite, ProcessGroup


@dataclass(frozen=True)
class LocalShard:
    """This process's rows of a tensor."""

    local: Tensor
    shape: tuple[int, ...]
    """Shape of the whole tensor."""

    start: int = 0
    """First row of the whole tensor that is held here."""

    sharded: bool = False
    replica: int = 0
    """Number of this copy among equal ones; copy 0 is written."""

    @property
    def stop(self) -> int:
        """One past the last row that is held here."""
        return self.start + self.local.shape[0]

    @property
    def piece(self) -> Piece:
        rows = (self.start, self.shape[0]) if self.sharded else None
        return Piece(self.local.dtype, tuple(self.local.shape), rows)


def local_shard(name: str, tensor: Tensor, group: ProcessGroup) -> LocalShard:
    """This process's rows of a tensor or DTensor; ValueError for a layout that is not supported."""
    if tensor.dtype not in DTYPES:
        raise ValueError(f"tensor {name!r} is {tensor.dtype}, which a checkpoint cannot hold")
    shape = tuple(tensor.shape)
    if not isinstance(tensor, DTensor):
        return LocalShard(tensor.detach(), shape)
    mesh, local = tensor.device_mesh, tensor.to_local().detach()
    if mesh.size() != group.size:
        raise ValueError(f"tensor {name!r} is on {mesh.size()} processes, not on all {group.size}")
    axes = [i for i, p in enumerate(tensor.placements) if type(p) is Shard and p.dim == 0]
    spread = [i for i, p in enumerate(tensor.placements) if not p.is_replicate()]
    if spread != axes or len(axes) > 1:
        raise ValueError(
            f"tensor {name!r} is placed as {tensor.placements}; a checkpoint can hold tensors that "
            "are replicated, or sharded once and by rows"
        )
    if not axes:
        return LocalShard(local, shape)
    [axis] = axes
    at = mesh.get_coordinate() or ()  # never None: the mesh has all processes
    each = -(-shape[0] // mesh.size(axis))  # as torch.chunk splits: the last shards may be empty
    start = min(at[axis] * each, shape[0])
    if local.shape[0] != min(each, shape[0] - start):
        raise ValueError(f"tensor {name!r} is sharded unevenly, which a checkpoint cannot hold")
    return LocalShard(local, shape, start, True, sum(c for i, c in enumerate(at) if i != axis))


def layout_digest(found: Mapping[str, LocalShard]) -> str:
    """A digest of all names, shapes and dtypes, which must be the same in every process."""
    rows = [[n, str(h.local.dtype), h.shape, h.sharded] for n, h in sorted(found.items())]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def names_to_write(found: Mapping[str, LocalShard], group: ProcessGroup) -> list[str]:
    """Tensors that this process writes: its shards, and a balanced share of replicated ones."""
    mine = [n for n, h in found.items() if h.sharded and h.replica == 0]
    mine = [n for n in mine if len(found[n].local) or not found[n].shape[0]]
    whole = {n: h.piece.nbytes for n, h in found.items() if not h.sharded}
    loads = [0] * group.size
    for name in sorted(whole, key=lambda n: (-whole[n], n)):
        rank = loads.index(min(loads))
        loads[rank] += max(whole[name], 1)
        if rank == group.rank:
            mine.append(name)
    return sorted(mine)


@torch.no_grad()
def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise NonFinite for the first tensor with NaN or infinity; waits once for the GPU."""
    checked = {n: t for n, t in tensors.items() if t.is_floating_point() and t.numel()}
    wide = [t if t.dtype.itemsize > 1 else t.half() for t in checked.values()]
    if not wide:
        return
    norms = torch.stack([norm.float() for norm in torch._foreach_norm(wide)])
    for name, tensor, fine in zip(checked, wide, norms.isfinite().tolist(), strict=True):
        # The norm of finite values may overflow, so look at the values themselves.
        if not fine and not tensor.isfinite().all():
            raise NonFinite(f"tensor {name!r} holds values that are not finite")


@dataclass(frozen=True)
class _StoredRows:
    """Rows of a tensor in a part's file."""

    file: Any
    piece: Piece
    start: int
    stop: int
    rows: int


class StoredTensors:
    """The tensors in a checkpoint's parts, whatever the number of processes that wrote them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Open the parts; InvalidCheckpoint for another layout, OSError if the machine fails."""
        self._stored: defaultdict[str, list[_StoredRows]] = defaultdict(list)
        types = {name: dtype for dtype, name in DTYPES.items()}
        for number, path in enumerate(paths):
            # safetensors calls every file that it fails to open missing, even without descriptors.
            path.open("rb").close()
            try:
                file: Any = safe_open(str(path), framework="pt")
                rows = json.loads(file.metadata()[METADATA])["rows"]
                for name in file.keys():  # noqa: SIM118  not a mapping
                    there = file.get_slice(name)
                    shape = tuple(there.get_shape())
                    start, total = rows.get(name) or (0, shape[0] if shape else 1)
                    piece = Piece(types[there.get_dtype()], shape, rows.get(name))
                    stop = start + (shape[0] if shape else 1)
                    self._stored[name].append(_StoredRows(file, piece, start, stop, total))
            except (SafetensorError, KeyError, TypeError, ValueError) as error:
                raise InvalidCheckpoint(f"its part {number} cannot be read ({error!r})") from error

    def check(self, wanted: Mapping[str, LocalShard], allow_extra: bool) -> None:
        """InvalidCheckpoint if rows are missing, or there are tensors that are not allowed."""
        for name in sorted(wanted.keys() - self._stored.keys()):
            raise InvalidCheckpoint(f"it has no tensor {name!r}")
        for name in sorted(self._stored.keys() - wanted.keys()) if not allow_extra else ():
            raise InvalidCheckpoint(f"it has an unknown tensor {name!r}")
        for name, want in wanted.items():
            reached = 0
            for stored in sorted(self._stored[name], key=lambda s: s.start):
                shape = (stored.rows, *stored.piece.shape[1:]) if stored.piece.shape else ()
                if (shape, stored.piece.dtype) != (want.shape, want.local.dtype):
                    raise InvalidCheckpoint(
                        f"its tensor {name!r} is {list(shape)} {stored.piece.dtype}, "
                        f"not {list(want.shape)} {want.local.dtype}"
                    )
                if stored.start != reached:
                    raise InvalidCheckpoint(f"rows of its tensor {name!r} are missing or repeated")
                reached = stored.stop
            if reached != (want.shape[0] if want.shape else 1):
                raise InvalidCheckpoint(f"rows of its tensor {name!r} are missing")

    @torch.no_grad()
    def copy_to(self, wanted: Mapping[str, LocalShard]) -> None:
        """Fill this process's rows of the tensors; reads no other rows."""
        for name, want in wanted.items():
            for stored in self._stored[name]:
                if not want.shape:
                    want.local.copy_(stored.file.get_tensor(name))
                    continue
                start, stop = max(want.start, stored.start), min(want.stop, stored.stop)
                if start < stop:
                    rows = stored.file.get_slice(name)[start - stored.start : stop - stored.start]
                    want.local[start - want.start : stop - want.start].copy_(rows)
