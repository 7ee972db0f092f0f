"""The cascade: a base picture, then super-resolution, each stage a denoiser of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ediffi_core import draws
from ediffi_core.conditioning import Conditioning
from ediffi_core.guidance import ConditionalDenoise, Scale, Threshold, guided
from ediffi_core.noise import edm_grid
from ediffi_core.sampling import SOLVERS, Callback


@dataclass(frozen=True, kw_only=True)
class CascadeStage:
    """One denoiser (or ensemble) and how it is sampled."""

    name: str
    denoiser: ConditionalDenoise
    resolution: int
    steps: int = 25
    """Our defaults: 25 for the base, 10 for each super-resolution (paper.md section 6)."""

    solver: str = "deis3"
    guidance: Scale = 0.0
    threshold: Threshold | None = None
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    tile: int | None = None
    """Side of the tiles it works in, for bounded memory; None for the whole picture at once."""

    overlap: int = 32
    """Margin of a tile on each side that is computed and thrown away."""

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"solver {self.solver!r} is none of {', '.join(SOLVERS)}")


@torch.inference_mode()
def sample(
    stages: Sequence[CascadeStage],
    cond: Conditioning,
    *,
    seed: int | Sequence[int],
    first: int = 0,
    callback: Callable[[str], Callback] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yields each stage's name and pictures [N, 3, R, R] in [-1, 1], from the smallest on.

    A picture depends on the seed and its number alone (``first`` is the number of the first row),
    never on the batch that it is drawn in. It is drawn where the conditioning is, from noise made
    on the CPU: every device starts from the same bits.

    Args:
        seed: one for all rows; or one for each, of which the row is picture number ``first``.

    Raises:
        ValueError: A row of the conditioning, or of a stage's pictures, has values that are not
            finite: as bytes they would be black.
    """
    if bad := cond.not_finite():
        row, name = bad[0]
        raise ValueError(
            f"the conditioning's {name} has values that are not finite in row {first + row} (and "
            f"{len(bad) - 1} more such); encode it again, in float32 if it was in another type"
        )
    for stage in stages:
        sigmas = edm_grid(stage.steps, sigma_min=stage.sigma_min, sigma_max=stage.sigma_max)
        shape = (3, stage.resolution, stage.resolution)
        noise = _noise(seed, f"sample/{stage.name}", first, len(cond), shape)
        x = noise.to(cond.device) * stage.sigma_max
        denoiser = stage.denoiser
        if stage.tile and stage.tile < stage.resolution:
            denoiser = Tiled(denoiser, stage.tile, stage.overlap)
        denoise = guided(denoiser, cond, stage.guidance, threshold=stage.threshold)
        watch = callback(stage.name) if callback else None
        pictures = SOLVERS[stage.solver](denoise, x, sigmas, watch)
        sound = pictures.isfinite().flatten(1).all(dim=1)
        if not bool(sound.all()):
            row = first + int((~sound).nonzero()[0])
            raise ValueError(
                f"stage {stage.name} drew values that are not finite in row {row}; lower its "
                "guidance, or look into its weights"
            )
        pictures = pictures.clamp(-1, 1)
        yield stage.name, pictures
        # Paint says where in the layout words go; from here on the small picture says it.
        cond = replace(cond, low_res=pictures, paint=None)


def _noise(
    seed: int | Sequence[int], purpose: str, first: int, rows: int, shape: tuple[int, ...]
) -> Tensor:
    if isinstance(seed, int):
        return draws.normal(seed, purpose, torch.arange(first, first + rows), shape)
    if len(seed) != rows:
        raise ValueError(f"{len(seed)} seeds for {rows} pictures; give one for all, or one each")
    number = torch.tensor([first])
    return torch.cat([draws.normal(s, purpose, number, shape) for s in seed])


class Tiled(nn.Module):
    """A super-resolution denoiser in overlapping tiles, one at a time: memory of one tile.

    Every tile is computed with a margin that is thrown away. Where the margin is as wide as the
    network sees (its receptive field's reach), the result is that of the whole picture.
    """

    def __init__(self, denoiser: ConditionalDenoise, tile: int, overlap: int) -> None:
        """
        Args:
            tile: side of a tile with its margins; a multiple of the network's factor.
            overlap: the margin on each side, likewise.
        """
        super().__init__()
        if not 0 <= 2 * overlap < tile:
            raise ValueError(f"overlap {overlap} on both sides leaves nothing of a tile of {tile}")
        self.denoiser, self.tile, self.overlap = denoiser, tile, overlap

    def forward(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        if cond.paint is not None:
            raise ValueError("paint-with-words guides the base; leave it out of tiled stages")
        low_res = cond.low_res
        if low_res is not None:  # enlarged once and whole, as the network would
            low_res = cond.enlarged(x)
        out = torch.empty_like(x)
        for rows, outer_rows in self.cuts(x.shape[2]):
            for columns, outer_columns in self.cuts(x.shape[3]):
                part = (..., outer_rows, outer_columns)
                told = cond if low_res is None else replace(cond, low_res=low_res[part])
                done = self.denoiser(x[part], sigma, told)
                top, left = rows.start - outer_rows.start, columns.start - outer_columns.start
                height, width = rows.stop - rows.start, columns.stop - columns.start
                out[..., rows, columns] = done[..., top : top + height, left : left + width]
        return out

    def cuts(self, side: int) -> Iterator[tuple[slice, slice]]:
        """(kept, computed) along one side; all tiles have the same size, the last ones shift."""
        if side <= self.tile:
            yield slice(0, side), slice(0, side)
            return
        at = 0
        while at < side:
            start = min(max(0, at - self.overlap), side - self.tile)
            end = side if start + self.tile == side else start + self.tile - self.overlap
            yield slice(at, end), slice(start, start + self.tile)
            at = end
