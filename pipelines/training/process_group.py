"""Collective calls over the processes that train one model, with errors raised in all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from pipelines.store.remote import StorageError

T = TypeVar("T")


class InvalidCheckpoint(ValueError):
    """A checkpoint that must not be used; the message says why."""


class NonFinite(ValueError):
    """A tensor that should be saved holds NaN or infinity."""


_SAME_TYPE = {kind.__name__: kind for kind in (InvalidCheckpoint, NonFinite, ValueError)}


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """The rank of this process, and the group in which the processes agree on outcomes."""

    rank: int = 0
    size: int = 1
    gloo_group: Any = None
    """A gloo group of all processes that nothing else uses; None for a single process."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank {self.rank} is not in a group of {self.size} processes")
        if self.size > 1 and self.gloo_group is None:
            raise ValueError(f"{self.size} processes need a gloo group of their own to agree in")

    def run(self, function: Callable[[], T]) -> T:
        """Call the function in every process and return this process's result.

        If it fails in one process, every process raises the same message: a ValueError keeps its
        type, any other error becomes a StorageError in the other processes.
        """
        return self._run_agreed(function, gather=False)[0]

    def run_and_gather(self, function: Callable[[], T]) -> list[T]:
        """Call the function in every process and return all results by rank.

        Fails as :meth:`run` does.
        """
        return self._run_agreed(function, gather=True)

    def run_on_first(self, function: Callable[[], T]) -> T:
        """Call the function in rank 0 and return its result in every process."""
        result = self.run_and_gather(lambda: function() if self.rank == 0 else None)[0]
        return result  # type: ignore[return-value]  # rank 0's own result, which may be None

    def _run_agreed(self, function: Callable[[], T], *, gather: bool) -> list[T]:
        if self.size == 1:
            return [function()]
        error, mine = None, None
        try:
            mine = function()
        except Exception as raised:
            error = raised
        failed = error and (type(error).__name__, str(error) or repr(error))
        outcomes: list[Any] = [None] * self.size
        dist.all_gather_object(outcomes, (mine if gather else None, failed), group=self.gloo_group)
        for rank, (_, failed) in enumerate(outcomes):
            if not failed:
                continue
            if rank == self.rank and error:
                raise error
            kind, text = failed
            if kind in _SAME_TYPE:
                raise _SAME_TYPE[kind](text)
            raise StorageError(f"process {rank} of {self.size}: {text}")
        return [result for result, _ in outcomes] if gather else [mine]  # type: ignore[list-item]
