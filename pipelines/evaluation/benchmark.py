"""A benchmark's captions as a source of an evaluation: encoded once, for all points of a curve."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import save

from ediffi_core.conditioning import Conditioning
from pipelines.data.chosen_captions import ChosenCaptions
from pipelines.evaluation.job import Source
from pipelines.evaluation.parts import tensors
from pipelines.metrics import Pictures
from pipelines.store.artifacts import Store

BLOCK = 64
"""Captions that are encoded and stored together."""

Encode = Callable[[Sequence[str]], Conditioning]


@dataclass(frozen=True, kw_only=True)
class Benchmark(Source):
    """Chosen captions, with their conditioning in the store."""

    chosen: ChosenCaptions
    resolution: int
    """Side of the real pictures, in pixels."""

    store: Store
    folder: str
    """Folder in the store for the conditioning of these captions by the model's encoders."""

    def __len__(self) -> int:
        return len(self.chosen)

    def captions(self, rows: Sequence[int]) -> list[str]:
        return [self.chosen.captions[row] for row in rows]

    def read(self, rows: range) -> tuple[Conditioning, Pictures | None]:
        return self.conditioning(rows), self.chosen.real(rows, self.resolution)

    def conditioning(self, rows: range) -> Conditioning:
        first = rows.start // BLOCK
        blocks = [self._block(n) for n in range(first, (rows.stop - 1) // BLOCK + 1)]
        start = rows.start - first * BLOCK
        return Conditioning.cat(blocks)[slice(start, start + len(rows))]

    def encode(self, load_encoder: Callable[[], Encode], report: Callable[[int], None]) -> None:
        """Encode the captions whose conditioning is not in the store yet.

        Args:
            load_encoder: Loads the model's encoders; called only if there is something to encode.
            report: Called with the number of captions that are done.

        Raises:
            ValueError: A caption cannot be encoded.
        """
        encode: Encode | None = None
        there = self.store.files(self.folder)
        for number in range(-(-len(self) // BLOCK)):
            if self._file(number) in there:
                continue
            encode = encode or load_encoder()
            rows = range(number * BLOCK, min((number + 1) * BLOCK, len(self)))
            data = _to_bytes(encode(self.captions(rows)))
            self.store.write(f"{self.folder}/{self._file(number)}", data)
            report(rows.stop)

    def _file(self, number: int) -> str:
        # A smaller choice is the beginning of a larger one, but its last block may be shorter.
        stop = min((number + 1) * BLOCK, len(self))
        return f"conditioning-{number * BLOCK:07d}-{stop:07d}.safetensors"

    def _block(self, number: int) -> Conditioning:
        path = f"{self.folder}/{self._file(number)}"
        data = self.store.read(path)
        if data is None:
            raise ValueError(f"{self.store.full(path)} is missing; run the same command again")
        return _from_tensors(tensors(data, self.store.full(path)))


def _to_bytes(cond: Conditioning) -> bytes:
    """Conditioning as safetensors, in float16 like embedded data."""
    cond = cond.map(lambda t: t.half() if t.is_floating_point() else t)
    for row, name in cond.non_finite_rows():
        raise ValueError(f"{name} of caption {row} of its block does not fit into float16")
    parts: Mapping[str, Mapping[str, torch.Tensor]] = {
        "sequences": cond.sequences,
        "masks": cond.masks,
        "pooled": cond.pooled,
    }
    return save({f"{p}/{n}": t.contiguous() for p, some in parts.items() for n, t in some.items()})


def _from_tensors(stored: Mapping[str, torch.Tensor]) -> Conditioning:
    found: dict[str, dict[str, torch.Tensor]] = {"sequences": {}, "masks": {}, "pooled": {}}
    for key, tensor in stored.items():
        part, _, name = key.partition("/")
        found[part][name] = tensor
    return Conditioning(**found)  # type: ignore[arg-type]
