"""Batch sizes of the encoders, where the spec says ``auto``.

On a CPU, the size is fixed. On a GPU, an actor tries sizes when it starts, and halves the size if
memory still runs out later. Batch sizes are not part of the recipe, since they hardly matter:
rounding depends on the batch, so on a GPU, where ``auto`` may find another size each time, two jobs
may differ in the last bit of some fp16 values. Give numbers where bytes must be identical.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeVar

import torch

BatchSetting = int | Literal["auto"]

TOKENS, PICTURES = 8192, 64
"""Sizes on a CPU, which gains nothing from larger ones."""

FIRST_TOKENS, FIRST_PICTURES = 4096, 32
MOST_TOKENS, MOST_PICTURES = 65_536, 1024
"""Upper limits: by then every GPU is busy, and the results must fit into the host's memory."""

MEMORY_SHARE = 0.5
"""Share of the free memory to use; the rest allows for fragmentation and for other actors on the
GPU."""

T = TypeVar("T")


class Memory(Protocol):
    """Memory of a device."""

    def free(self) -> int:
        """Free bytes."""

    def peak(self, run: Callable[[], object]) -> int | None:
        """Peak bytes that a call allocates; None if memory runs out."""


class GPUMemory:
    """Memory of the GPU that PyTorch uses."""

    def free(self) -> int:
        unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + unused

    def peak(self, run: Callable[[], object]) -> int | None:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        try:
            run()
        except torch.OutOfMemoryError:
            pass
        else:
            return torch.cuda.max_memory_allocated() - held
        torch.cuda.empty_cache()
        return None


class BatchSize:
    """A batch size, given or found by trying."""

    def __init__(self, given: BatchSetting, size: int) -> None:
        self.size = size if given == "auto" else given
        self.fixed = given != "auto"

    def find(self, run: Callable[[int], Any], memory: Memory, first: int, most: int) -> None:
        """Double the size as long as twice its peak memory is within :data:`MEMORY_SHARE`.

        Args:
            run: Runs a batch of a given size.
            memory: The device's memory.
            first: Size to start with.
            most: Largest size.

        Raises:
            ValueError: Not even one token or picture fits.
        """
        if self.fixed:
            return
        self.size = first
        while (took := memory.peak(lambda: run(self.size))) is None:
            if self.size == 1:
                raise ValueError(
                    "the GPU's memory is too small for an encoder; give its actor a whole or a "
                    "larger GPU, under `embedding:`"
                )
            self.size //= 2
        while 2 * self.size <= most and 2 * took <= MEMORY_SHARE * memory.free():
            more = memory.peak(lambda: run(2 * self.size))
            if more is None:
                break
            self.size, took = 2 * self.size, more

    def run_with(self, run: Callable[[int], T]) -> T:
        """Run a batch of this size; if memory runs out, halve the size and try again."""
        while True:
            try:
                return run(self.size)
            except torch.OutOfMemoryError:
                if self.fixed or self.size == 1:
                    raise
            self.size //= 2
            torch.cuda.empty_cache()


def long_captions(tokens: int, longest: int) -> list[str]:
    """Distinct captions for a batch of ``tokens`` tokens, each at least ``longest`` tokens long."""
    return [f"{i} " + "word " * longest for i in range(max(1, tokens // longest))]
