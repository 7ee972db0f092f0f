"""How much an encoder is given at once, where the spec says ``auto``.

On a CPU always the same. On a GPU as much as fits, found by trying when an actor starts; and if
memory runs out all the same, half of it from then on. No recipe has it in it, as it is not meant
to matter: an encoder's sums are added up in an order that depends on the batch, so on a GPU, where
``auto`` may find another one every time, two jobs may differ in the last bit of some fp16 values.
Give numbers where the bytes must be the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeVar

import torch

BatchSetting = int | Literal["auto"]

TOKENS, PICTURES = 8192, 64
"""Where nothing is tried: on a CPU, which gains nothing by more."""

FIRST_TOKENS, FIRST_PICTURES = 4096, 32
MOST_TOKENS, MOST_PICTURES = 65_536, 1024
"""By then every GPU is busy; and what comes back has to fit into the host's memory."""

MEMORY_SHARE = 0.5
"""Of the free memory; the rest is for what fragments, and for actors that share the GPU."""

T = TypeVar("T")


class Memory(Protocol):
    """A device's."""

    def free(self) -> int:
        """Bytes that can be had."""

    def peak(self, run: Callable[[], object]) -> int | None:
        """Bytes that something takes beyond what is held already; None if there are too few."""


class GPUMemory:
    """Of the GPU that PyTorch uses."""

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
    """A size that is kept to, or found."""

    def __init__(self, given: BatchSetting, size: int) -> None:
        self.size = size if given == "auto" else given
        self.fixed = given != "auto"

    def find(self, run: Callable[[int], Any], memory: Memory, first: int, most: int) -> None:
        """Doubles the size as long as twice what it took is within the share.

        Raises:
            ValueError: Not even one token or picture fits.
        """
        if self.fixed:
            return
        self.size = first
        while (took := memory.peak(lambda: run(self.size))) is None:
            if self.size == 1:
                raise ValueError(
                    "the GPU's memory is too small for an encoder; give its actor a whole GPU, or "
                    "a larger one, under `embedding:`"
                )
            self.size //= 2
        while 2 * self.size <= most and 2 * took <= MEMORY_SHARE * memory.free():
            more = memory.peak(lambda: run(2 * self.size))
            if more is None:
                break
            self.size, took = 2 * self.size, more

    def run_with(self, run: Callable[[int], T]) -> T:
        """What is run with the size; again with half of it where memory runs out."""
        while True:
            try:
                return run(self.size)
            except torch.OutOfMemoryError:
                if self.fixed or self.size == 1:
                    raise
            self.size //= 2
            torch.cuda.empty_cache()


def long_captions(tokens: int, longest: int) -> list[str]:
    """As many different ones as make up a batch of tokens, each as long as an encoder reads."""
    return [f"{i} " + "word " * longest for i in range(max(1, tokens // longest))]
