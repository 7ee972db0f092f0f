"""The processes that train one model together, and how they agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from pipelines.store.remote import StorageError

T = TypeVar("T")


class Unsound(ValueError):
    """A checkpoint that must not be used, and why."""


class NonFinite(ValueError):
    """A tensor to be saved holds NaN or infinity."""


_ALIKE = {kind.__name__: kind for kind in (Unsound, NonFinite, ValueError)}


@dataclass(frozen=True, kw_only=True)
class Peers:
    """Which process this is among those that train together."""

    rank: int = 0
    size: int = 1
    group: Any = None
    """A gloo group of them all that nothing else uses; None when alone."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank {self.rank} is none of {self.size} processes")
        if self.size > 1 and self.group is None:
            raise ValueError(f"{self.size} processes need a gloo group of their own to agree in")

    def here(self, work: Callable[[], T]) -> T:
        """Does something in every process; → what it gave in this one.

        What fails in one fails in all, with the same words: a ValueError as it is, anything else
        as a StorageError in the others.
        """
        return self._agreed(work, tell=False)[0]

    def together(self, work: Callable[[], T]) -> list[T]:
        """Does something in every process; → what it gave, by rank. Fails as :meth:`here` does."""
        return self._agreed(work, tell=True)

    def first(self, work: Callable[[], T]) -> T:
        """Does something in the first process; → what it gave, in all."""
        given = self.together(lambda: work() if self.rank == 0 else None)[0]
        return given  # type: ignore[return-value]  # work's own, and it may give None

    def _agreed(self, work: Callable[[], T], *, tell: bool) -> list[T]:
        if self.size == 1:
            return [work()]
        error, mine = None, None
        try:
            mine = work()
        except Exception as found:
            error = found
        failed = error and (type(error).__name__, str(error) or repr(error))
        outcomes: list[Any] = [None] * self.size
        dist.all_gather_object(outcomes, (mine if tell else None, failed), group=self.group)
        for rank, (_, failed) in enumerate(outcomes):
            if not failed:
                continue
            if rank == self.rank and error:
                raise error
            kind, text = failed
            if kind in _ALIKE:
                raise _ALIKE[kind](text)
            raise StorageError(f"process {rank} of {self.size}: {text}")
        return [given for given, _ in outcomes] if tell else [mine]  # type: ignore[list-item]
