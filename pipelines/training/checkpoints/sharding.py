"""Which rows of every tensor a process has, which it writes, and how it gets its own back."""

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
from pipelines.training.process_group import NonFinite, Peers, Unsound


@dataclass(frozen=True)
class Held:
    """What this process has of a tensor."""

    local: Tensor
    shape: tuple[int, ...]
    """Of the whole tensor."""

    start: int = 0
    """The first of its rows that is here."""

    sharded: bool = False
    replica: int = 0
    """Which of the equal copies this is."""

    @property
    def stop(self) -> int:
        return self.start + self.local.shape[0]

    @property
    def piece(self) -> Piece:
        rows = (self.start, self.shape[0]) if self.sharded else None
        return Piece(self.local.dtype, tuple(self.local.shape), rows)


def held(name: str, tensor: Tensor, peers: Peers) -> Held:
    """ValueError if it is of a kind that checkpoints do not hold."""
    if tensor.dtype not in DTYPES:
        raise ValueError(f"tensor {name!r} is {tensor.dtype}, which a checkpoint cannot hold")
    shape = tuple(tensor.shape)
    if not isinstance(tensor, DTensor):
        return Held(tensor.detach(), shape)
    mesh, local = tensor.device_mesh, tensor.to_local().detach()
    if mesh.size() != peers.size:
        raise ValueError(f"tensor {name!r} is of {mesh.size()} processes, not of all {peers.size}")
    axes = [i for i, p in enumerate(tensor.placements) if type(p) is Shard and p.dim == 0]
    spread = [i for i, p in enumerate(tensor.placements) if not p.is_replicate()]
    if spread != axes or len(axes) > 1:
        raise ValueError(
            f"tensor {name!r} is placed as {tensor.placements}; a checkpoint holds what is "
            "replicated, or sharded once and by rows"
        )
    if not axes:
        return Held(local, shape)
    [axis] = axes
    at = mesh.get_coordinate() or ()  # never empty: the mesh has all processes
    each = -(-shape[0] // mesh.size(axis))  # as torch.chunk does it: the last ones may have none
    start = min(at[axis] * each, shape[0])
    if local.shape[0] != min(each, shape[0] - start):
        raise ValueError(f"tensor {name!r} is sharded unevenly, which a checkpoint cannot hold")
    return Held(local, shape, start, True, sum(c for i, c in enumerate(at) if i != axis))


def layout(found: Mapping[str, Held]) -> str:
    """A digest of all names, shapes and types: the same in every process."""
    rows = [[n, str(h.local.dtype), h.shape, h.sharded] for n, h in sorted(found.items())]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def written_here(found: Mapping[str, Held], peers: Peers) -> list[str]:
    """Names whose rows this process writes: its shards, and its even share of what all have."""
    mine = [n for n, h in found.items() if h.sharded and h.replica == 0]
    mine = [n for n in mine if len(found[n].local) or not found[n].shape[0]]
    whole = {n: h.piece.nbytes for n, h in found.items() if not h.sharded}
    loads = [0] * peers.size
    for name in sorted(whole, key=lambda n: (-whole[n], n)):
        rank = loads.index(min(loads))
        loads[rank] += max(whole[name], 1)
        if rank == peers.rank:
            mine.append(name)
    return sorted(mine)


@torch.no_grad()
def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """NonFinite names the first that is not; one pass, and one wait for a GPU."""
    checked = {n: t for n, t in tensors.items() if t.is_floating_point() and t.numel()}
    wide = [t if t.dtype.itemsize > 1 else t.half() for t in checked.values()]
    if not wide:
        return
    norms = torch.stack([norm.float() for norm in torch._foreach_norm(wide)])
    for name, tensor, fine in zip(checked, wide, norms.isfinite().tolist(), strict=True):
        # Of finite values, too, a norm may be more than its type holds.
        if not fine and not tensor.isfinite().all():
            raise NonFinite(f"tensor {name!r} holds values that are not finite")


@dataclass(frozen=True)
class _Stored:
    """A piece in a part's file."""

    file: Any
    piece: Piece
    start: int
    stop: int
    rows: int


class Parts:
    """The tensors of a checkpoint's files, whoever wrote which rows."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Unsound if one of the files is no part."""
        self._stored: defaultdict[str, list[_Stored]] = defaultdict(list)
        types = {name: dtype for dtype, name in DTYPES.items()}
        for number, path in enumerate(paths):
            try:
                file: Any = safe_open(str(path), framework="pt")
                rows = json.loads(file.metadata()[METADATA])["rows"]
                for name in file.keys():  # noqa: SIM118  it is no mapping
                    there = file.get_slice(name)
                    shape = tuple(there.get_shape())
                    start, total = rows.get(name) or (0, shape[0] if shape else 1)
                    piece = Piece(types[there.get_dtype()], shape, rows.get(name))
                    stop = start + (shape[0] if shape else 1)
                    self._stored[name].append(_Stored(file, piece, start, stop, total))
            except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
                raise Unsound(f"its part {number} cannot be read ({error!r})") from error

    def check(self, wanted: Mapping[str, Held], some: bool) -> None:
        """Unsound unless it has all rows of these tensors, and others only if some are wanted."""
        for name in sorted(wanted.keys() - self._stored.keys()):
            raise Unsound(f"it has no tensor {name!r}")
        for name in sorted(self._stored.keys() - wanted.keys()) if not some else ():
            raise Unsound(f"it has an unknown tensor {name!r}")
        for name, want in wanted.items():
            reached = 0
            for stored in sorted(self._stored[name], key=lambda s: s.start):
                shape = (stored.rows, *stored.piece.shape[1:]) if stored.piece.shape else ()
                if (shape, stored.piece.dtype) != (want.shape, want.local.dtype):
                    raise Unsound(
                        f"its tensor {name!r} is {list(shape)} {stored.piece.dtype}, "
                        f"not {list(want.shape)} {want.local.dtype}"
                    )
                if stored.start != reached:
                    raise Unsound(f"it has rows of tensor {name!r} twice or not at all")
                reached = stored.stop
            if reached != (want.shape[0] if want.shape else 1):
                raise Unsound(f"it has not all rows of tensor {name!r}")

    @torch.no_grad()
    def copy_to(self, wanted: Mapping[str, Held]) -> None:
        """Fills what this process has of the tensors; reads no other rows."""
        for name, want in wanted.items():
            for stored in self._stored[name]:
                if not want.shape:
                    want.local.copy_(stored.file.get_tensor(name))
                    continue
                start, stop = max(want.start, stored.start), min(want.stop, stored.stop)
                if start < stop:
                    rows = stored.file.get_slice(name)[start - stored.start : stop - stored.start]
                    want.local[start - want.start : stop - want.start].copy_(rows)
