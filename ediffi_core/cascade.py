"""Cascaded sampling: a base stage, then super-resolution stages (eDiff-I section 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ediffi_core import draws
from ediffi_core.attention_maps import AttentionRecorder
from ediffi_core.conditioning import Conditioning
from ediffi_core.control import Control, SwitchOnGrid, check_start
from ediffi_core.ensemble import Ensemble
from ediffi_core.guidance import ConditionalDenoise, Scale, Threshold, guided
from ediffi_core.invariant import RowInvariant, padded
from ediffi_core.noise import edm_grid
from ediffi_core.sampling import SOLVERS, Callback, Churn, Denoise
from ediffi_core.solver_names import MULTISTEP, SINGLE_STEP

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Names of the types in which a network may compute → the type for autocast."""


@dataclass(frozen=True, kw_only=True)
class CascadeStage:
    """A denoiser or ensemble, and how to sample it."""

    name: str
    denoiser: ConditionalDenoise
    resolution: int
    """Side of the images in pixels."""

    steps: int = 25
    """Sampling steps; our defaults are 25 for the base and 10 for super-resolution."""

    solver: str = "deis3"
    """A key of :data:`ediffi_core.sampling.SOLVERS`."""

    guidance: Scale = 0.0
    threshold: Threshold | None = None
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    """Exponent of EDM's grid: the higher, the more steps at low noise."""

    churn: Callable[[Callable[[int], Tensor]], Churn] | None = None
    """Makes the churn of a single-step solver from a function of the step that draws its noise,
    which :func:`sample` provides."""

    history: Literal["keep", "drop"] = "keep"
    """Whether a multistep solver keeps its history where another expert takes over."""

    precision: str = "float32"
    """Type in which the network computes, a key of :data:`PRECISIONS`. x stays in float32."""

    tile: int | None = None
    """Side of the tiles to sample in, to bound memory; None for the whole image at once."""

    overlap: int = 32
    """Margin in pixels on each side of a tile that is computed and discarded."""

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(
                f"solver {self.solver!r} is unknown; choose one of {', '.join(SOLVERS)}"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision {self.precision!r} is unknown; choose one of {', '.join(PRECISIONS)}"
            )
        if self.churn and self.solver not in SINGLE_STEP:
            raise ValueError(
                f"solver {self.solver} keeps a history, which churn would make useless; choose "
                f"{' or '.join(SINGLE_STEP)}, or no churn"
            )

    def sigmas(self, highest: float | None = None) -> Tensor:
        """The noise levels of :func:`edm_grid`, from ``highest`` instead of ``sigma_max``."""
        if highest is None:
            highest = self.sigma_max
        else:
            check_start(highest, self.sigma_min, self.sigma_max)
        return edm_grid(self.steps, sigma_min=self.sigma_min, sigma_max=highest, rho=self.rho)

    def is_guided(self, highest: float | None = None) -> bool:
        """Whether there is guidance at any of the noise levels."""
        w = self.guidance
        return any(w(s) for s in self.sigmas(highest)[:-1].tolist()) if callable(w) else bool(w)


@torch.inference_mode()
def sample(
    stages: Sequence[CascadeStage],
    cond: Conditioning,
    *,
    seed: int | Sequence[int],
    first: int | Sequence[int] = 0,
    callback: Callable[[str], Callback] | None = None,
    control: Control | None = None,
    wanted: Callable[[], Sequence[bool]] | None = None,
    attention: AttentionRecorder | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Sample all stages, and yield each one's name and images [N, 3, R, R] in [-1, 1].

    An image depends only on its own row, seed and number, not on its batch, to the bit on a CPU
    (:mod:`ediffi_core.invariant`). Sampling runs on the device of the conditioning, from noise
    drawn on the CPU, so every device starts from the same bits.

    Args:
        stages: from the lowest resolution up.
        cond: conditioning of N images.
        seed: one seed for all rows; or one per row.
        first: number of the first row, from which one seed for all counts on; with a seed per row,
            the number of every row. Or one number per row.
        callback: stage name → callback for its solver.
        control: negative prompts, a second prompt, and a picture to start from or to keep a part
            of. The first stage starts from the picture and switches prompts; all stages have the
            negative prompts and the part to keep.
        wanted: asked before every evaluation which of the N rows to go on with. A row that is not
            wanted is never evaluated again, whatever the later answers, and its images mean
            nothing. An error that it raises ends the sampling.
        attention: records where the rows attend to their own prompts, in stages of U-Nets.

    Raises:
        ValueError: A row of the conditioning, or of a stage's images, has values that are not
            finite; as bytes they would be black. Or ``control`` does not fit the conditioning or
            the first stage.
    """
    if bad := cond.non_finite_rows():
        row, name = bad[0]
        raise ValueError(
            f"the conditioning's {name} has values that are not finite in row "
            f"{_row_name(first, row)} (and {len(bad) - 1} more such); encode it again, in float32 "
            "if it was in another type"
        )
    control = (control or Control()).to(cond.device)
    control.check(len(cond))
    cond, control = padded(cond), control.map_rows(padded, lambda picture: picture)
    seeds, numbers = _seeds_and_numbers(seed, first, len(cond))
    live = _LiveRows(len(cond), wanted)
    own = cond.sequences  # a second prompt has others
    for stage in stages:
        noise = partial(_noise, seeds, numbers, (3, stage.resolution, stage.resolution))
        pictures, cond = _sample_stage(
            stage,
            cond,
            control,
            noise,
            live,
            callback(stage.name) if callback else None,
            attention if cond.sequences is own else None,
        )
        finite = pictures.isfinite().flatten(1).all(dim=1)
        overflowed = [] if bool(finite.all()) else [r for r in live.rows if not finite[r]]
        if overflowed:
            raise ValueError(
                f"stage {stage.name} drew values that are not finite in row "
                f"{_row_name(first, overflowed[0])}; lower its guidance, or check its weights"
            )
        pictures = pictures.clamp(-1, 1)
        yield stage.name, pictures
        # Painted words set the layout of the base; later stages take it from the low-res image.
        cond = replace(cond, low_res=pictures, paint=None)
        control = replace(control, start=None, switch=None)


def _sample_stage(
    stage: CascadeStage,
    cond: Conditioning,
    control: Control,
    noise: Callable[[str], Tensor],
    live: _LiveRows,
    callback: Callback | None,
    attention: AttentionRecorder | None,
) -> tuple[Tensor, Conditioning]:
    """The stage's images, and the conditioning at its end."""
    start, switch = control.start, control.switch
    sigmas = stage.sigmas(start.sigma if start else None)
    x = noise(f"sample/{stage.name}").to(cond.device) * (start.sigma if start else stage.sigma_max)
    denoiser = _row_by_row(stage)
    if stage.tile and stage.tile < stage.resolution:
        denoiser, attention = Tiled(denoiser, stage.tile, stage.overlap), None

    def conditioned(on: Conditioning, attention: AttentionRecorder | None) -> Denoise:
        def of_rows(rows: Tensor | None) -> Denoise:
            mine, avoided = on, control.negative
            if rows is not None:
                mine, avoided = mine[rows], None if avoided is None else avoided[rows]
            denoise = guided(
                denoiser, mine, stage.guidance, negative=avoided, threshold=stage.threshold
            )
            if attention is None:
                return denoise
            return attention.following(
                denoise,
                stage=stage.name,
                denoiser=stage.denoiser,
                sigmas=sigmas,
                rows=live.rows,
                count=live.count,
            )

        return live.denoise(of_rows)

    denoise = conditioned(cond, attention)
    if switch:
        level = switch.level(sigmas)
        after = replace(switch.cond, low_res=cond.low_res)
        switching = SwitchOnGrid(denoise, conditioned(after, None), level, sigmas, callback)
        denoise, callback = switching, switching.stepped
        cond = after if level >= float(sigmas[-2]) else cond
    if start:
        x = x + start.at(stage.resolution)
    if control.keep:
        keep = control.keep.at(stage.resolution)
        x = x if start else x + keep.kept()
        denoise = keep.within(denoise)
    solver: Callable[..., Tensor] = SOLVERS[stage.solver]
    return solver(denoise, x, sigmas, callback, **_solver_options(stage, noise)), cond


def _row_by_row(stage: CascadeStage) -> ConditionalDenoise:
    """The stage's denoiser in its precision, with rows that do not depend on their batch."""
    dtype = PRECISIONS[stage.precision]

    def denoise(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        with RowInvariant(), torch.autocast(x.device.type, dtype, enabled=dtype is not None):
            return stage.denoiser(x, sigma, cond).to(x.dtype)

    return denoise


def _solver_options(stage: CascadeStage, noise: Callable[[str], Tensor]) -> dict[str, Any]:
    """The solver's arguments beyond those that all have; ``noise`` draws for a purpose."""
    if stage.churn:
        return {"churn": stage.churn(lambda step: noise(f"churn/{stage.name}/{step}"))}
    edges = stage.denoiser.edges if isinstance(stage.denoiser, Ensemble) else []
    if stage.history == "drop" and stage.solver in MULTISTEP:
        return {"restart_at": edges}
    return {}


def _seeds_and_numbers(
    seed: int | Sequence[int], first: int | Sequence[int], rows: int
) -> tuple[list[int], list[int]]:
    """Seed and number of each row, from the arguments of :func:`sample`."""
    seeds = [seed] * rows if isinstance(seed, int) else list(seed)
    if len(seeds) != rows:
        raise ValueError(f"{len(seeds)} seeds for {rows} pictures; give one for all, or one each")
    if not isinstance(first, int):
        numbers = list(first)
    elif isinstance(seed, int):
        numbers = list(range(first, first + rows))
    else:
        numbers = [first] * rows
    if len(numbers) != rows:
        raise ValueError(f"{len(numbers)} numbers for {rows} pictures; give the first, or one each")
    return seeds, numbers


def _noise(
    seeds: Sequence[int], numbers: Sequence[int], shape: tuple[int, ...], purpose: str
) -> Tensor:
    """Noise of each row's seed and number. → [N, *shape]"""
    noise = torch.empty(len(seeds), *shape, dtype=torch.float32)
    for seed in set(seeds):
        rows = [row for row, s in enumerate(seeds) if s == seed]
        index = torch.tensor([numbers[row] for row in rows])
        noise[rows] = draws.normal(seed, purpose, index, shape)
    return noise


def _row_name(first: int | Sequence[int], row: int) -> int:
    """What errors call a row: its number where rows are numbered on, else its place."""
    return first + row if isinstance(first, int) else row


class _LiveRows:
    """The rows that are still wanted; the others are not evaluated."""

    def __init__(self, rows: int, wanted: Callable[[], Sequence[bool]] | None) -> None:
        self.count, self.wanted = rows, wanted
        self.rows = list(range(rows))
        """Rows that were wanted whenever it was asked, in order."""

    def ask(self) -> None:
        if self.wanted is None:
            return
        wanted = self.wanted()
        if len(wanted) != self.count:
            raise ValueError(f"{len(wanted)} answers what is wanted of {self.count} rows")
        self.rows = [row for row in self.rows if wanted[row]]

    def denoise(self, of_rows: Callable[[Tensor | None], Denoise]) -> Denoise:
        """A function for all rows that evaluates the live ones, and leaves the others as they are.

        Args:
            of_rows: makes the function for the rows of these indices, None for all; called when
                rows have left.
        """

        def make() -> tuple[list[int], Tensor | None, Denoise]:
            some = len(self.rows) < self.count
            index = torch.tensor(self.rows, dtype=torch.int64) if some else None
            return self.rows, index, of_rows(index)

        rows, index, evaluate = make()

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            nonlocal rows, index, evaluate
            self.ask()
            if not self.rows:
                return x
            if self.rows != rows:
                rows, index, evaluate = make()
            if index is None:
                return evaluate(x, sigma)
            out = x.clone()
            out[index] = evaluate(x[index], sigma)
            return out

        return denoise


class Tiled(nn.Module):
    """Runs a super-resolution denoiser on overlapping tiles, one at a time, to bound memory.

    Every tile is computed with a margin that is discarded. If the margin is at least the radius of
    the network's receptive field, the result equals that of the whole image.
    """

    def __init__(self, denoiser: ConditionalDenoise, tile: int, overlap: int) -> None:
        """
        Args:
            tile: side of a tile including its margins; a multiple of the network's factor.
            overlap: margin on each side; a multiple of the network's factor.
        """
        super().__init__()
        if not 0 <= 2 * overlap < tile:
            raise ValueError(f"overlap {overlap} on both sides leaves nothing of a tile of {tile}")
        self.denoiser, self.tile, self.overlap = denoiser, tile, overlap

    def forward(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """As :meth:`ediffi_core.precond.Denoiser.forward`."""
        if cond.paint is not None:
            raise ValueError("paint-with-words guides the base; leave it out of tiled stages")
        low_res = cond.low_res
        if low_res is not None:  # upsampled once and as a whole, as the network would
            low_res = cond.upsampled_low_res(x)
        out = torch.empty_like(x)
        for rows, outer_rows in self.tiles(x.shape[2]):
            for columns, outer_columns in self.tiles(x.shape[3]):
                part = (..., outer_rows, outer_columns)
                tile_cond = cond if low_res is None else replace(cond, low_res=low_res[part])
                done = self.denoiser(x[part], sigma, tile_cond)
                top, left = rows.start - outer_rows.start, columns.start - outer_columns.start
                height, width = rows.stop - rows.start, columns.stop - columns.start
                out[..., rows, columns] = done[..., top : top + height, left : left + width]
        return out

    def tiles(self, side: int) -> Iterator[tuple[slice, slice]]:
        """(kept, computed) slices along one side; all tiles have one size, the last ones shift."""
        if side <= self.tile:
            yield slice(0, side), slice(0, side)
            return
        at = 0
        while at < side:
            start = min(max(0, at - self.overlap), side - self.tile)
            end = side if start + self.tile == side else start + self.tile - self.overlap
            yield slice(at, end), slice(start, start + self.tile)
            at = end
