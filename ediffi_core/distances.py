"""Distances between the features of generated and of real pictures, with confidence intervals.

The Fréchet distance and KID are computed as torch-fidelity computes them, so with its features they
are the FID and KID that papers report; CMMD is computed as by its authors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ediffi_core.features import (
    BLOCK,
    Features,
    Kernel,
    check_comparable,
    check_enough,
    gaussian,
    kernel_diagonal,
    kernel_sums,
    polynomial,
)
from ediffi_core.metrics import Moments, frechet_distance, student_t

GROUPS = 20
"""Groups of the jackknife of the Fréchet distance."""

HELD_BYTES = 2**28
"""Memory for groups' moments, and for subsets' features, that are computed in one pass."""

KID_SUBSETS, KID_SUBSET_SIZE, KID_SEED = 100, 1000, 2020
"""torch-fidelity's defaults."""

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One number about a set of pictures, with all that is needed to compare it with another."""

    value: float
    low: float
    """Lower bound of the 95 % confidence interval."""

    high: float
    count: int
    """Number of generated pictures."""

    features: str
    """Name of the features."""

    sha256: str
    """sha256 of the weights of the network that made the features."""

    def to_json(self) -> dict[str, Any]:
        """All fields; bounds that are infinite, as those of too few pictures, are None."""
        return {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in asdict(self).items()
        }

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Measured:
        """The inverse of :meth:`to_json`."""
        bounds = {"low": -math.inf, "high": math.inf}
        return Measured(**{**stored, **{k: v for k, v in bounds.items() if stored[k] is None}})

    def metrics(self, measure: str) -> dict[str, float]:
        """Flat metrics for MLflow: ``fid/inception``, and half the interval's width as ``…_ci95``,
        its ends as ``…_low`` and ``…_high``, and the number of pictures as ``…_pictures``."""
        name = f"{measure}/{self.features}"
        found = {name: self.value, f"{name}_pictures": float(self.count)}
        if math.isfinite(self.high - self.low):
            found |= {
                f"{name}_ci95": (self.high - self.low) / 2,
                f"{name}_low": self.low,
                f"{name}_high": self.high,
            }
        return found


def measured(value: float, error: float, made: Features, dof: float = math.inf) -> Measured:
    """A value with an interval of Student's t.

    Args:
        error: standard error.
        dof: degrees of freedom of the standard error.
    """
    width = (1.959963984540054 if math.isinf(dof) else student_t(int(dof))) * error
    return Measured(
        value=value,
        low=value - width,
        high=value + width,
        count=len(made),
        features=made.name,
        sha256=made.sha256,
    )


# -- Fréchet distance ------------------------------------------------------------------------------


def fid(made: Features, real: Features, *, groups: int = GROUPS, seed: int = 0) -> Measured:
    """Fréchet distance of two sets (FID, arXiv:1706.08500, with Inception's features).

    The interval is by the delete-a-group jackknife (Shao and Tu, The Jackknife and Bootstrap, 1995,
    section 2.3): pictures are put into groups at random, and the distance is computed without each
    group. A group leaves both sets at once, so pictures of the same captions may be paired. The
    interval is about the distance at this number of pictures, which is biased upwards: compare
    only distances of equally many pictures.

    Args:
        groups: number of groups.
        seed: seed of the groups.

    Raises:
        ValueError: There are fewer than 4 pictures of a kind, or two networks made the features.
    """
    check_enough("fid", 4, made, real)
    check_comparable(made, real)
    groups = min(groups, len(made) // 2, len(real) // 2)
    all_made, all_real = Moments.of(made).to(made.device), Moments.of(real).to(made.device)
    value = frechet_distance(all_made, all_real)
    without = torch.tensor(
        [
            frechet_distance(all_made - mine.to(made.device), all_real - theirs.to(made.device))
            for mine, theirs in zip(
                group_moments(made, groups, seed), group_moments(real, groups, seed), strict=True
            )
        ],
        dtype=torch.float64,
    )
    squares = (without - without.mean()).square().sum()
    error = math.sqrt(float(squares) * (groups - 1) / groups)
    return measured(value, error, made, groups - 1)


def group_moments(
    features: Features, groups: int, seed: int, held_bytes: int = HELD_BYTES
) -> Iterator[Moments]:
    """Moments of random groups of equally many vectors, one after another.

    Each pass over the features computes as many groups as fit into ``held_bytes``.
    """
    generator = torch.Generator().manual_seed(seed)
    group = torch.randperm(len(features), generator=generator) % groups
    at_once = max(1, held_bytes // (8 * features.dim**2))
    for first in range(0, groups, at_once):
        found: dict[int, Moments] = {}
        start = 0
        for block in features.blocks():
            of = group[start : start + len(block)].to(block.device)
            start += len(block)
            for number in range(first, min(first + at_once, groups)):
                if len(mine := block[of == number]):
                    part = Moments.of(mine)
                    found[number] = found[number] + part if number in found else part
        yield from (found[number] for number in sorted(found))


# -- kernel distances ------------------------------------------------------------------------------


def kid(
    made: Features,
    real: Features,
    *,
    subsets: int = KID_SUBSETS,
    subset_size: int = KID_SUBSET_SIZE,
    seed: int = KID_SEED,
) -> Measured:
    """Kernel distance (KID, arXiv:1801.01401) as torch-fidelity computes it.

    The mean of the unbiased MMD² with the kernel ``(x·y/D + 1)³`` over random subsets. The interval
    counts the spread over pictures, by the jackknife over all of them (:func:`mmd_error`), and what
    the choice of subsets adds. (The standard deviation over subsets that other tools report is no
    error of the mean: subsets overlap.)

    Args:
        subsets: number of subsets.
        subset_size: pictures of each kind in a subset.
        seed: seed of the subsets.

    Raises:
        ValueError: There are fewer pictures than ``subset_size``.
    """
    check_enough("kid", max(3, subset_size), made, real)
    check_comparable(made, real)
    kernel = polynomial(made.dim)
    rng = np.random.RandomState(seed)  # its stream is frozen; torch-fidelity draws from it
    drawn = [
        tuple(
            torch.from_numpy(rng.choice(len(one), subset_size, replace=False))
            for one in (made, real)
        )
        for _ in range(subsets)
    ]
    at_once = max(1, HELD_BYTES // (16 * subset_size * made.dim))
    values: list[float] = []
    for first in range(0, subsets, at_once):
        some = drawn[first : first + at_once]
        x, y = (
            one.rows(torch.cat([pair[kind] for pair in some])).split(subset_size)
            for kind, one in enumerate((made, real))
        )
        values += [unbiased_mmd(a, b, kernel) for a, b in zip(x, y, strict=True)]
    over_subsets = torch.tensor(values, dtype=torch.float64)
    chosen = float(over_subsets.var(correction=0)) / subsets
    error = math.sqrt(mmd_error(made, real, kernel, unbiased=True) ** 2 + chosen)
    return measured(float(over_subsets.mean()), error, made)


def unbiased_mmd(x: Tensor, y: Tensor, kernel: Kernel) -> float:
    """Unbiased MMD² of two sets [n, D] that fit in memory (Gretton et al. 2012, equation 3)."""
    within = [kernel(a, a) for a in (x, y)]
    mean = sum(float((k.sum() - k.trace()) / (len(k) * (len(k) - 1))) for k in within)
    return mean - 2 * float(kernel(x, y).mean())


def cmmd(
    made: Features, real: Features, *, sigma: float = CMMD_SIGMA, scale: float = CMMD_SCALE
) -> Measured:
    """CMMD (arXiv:2401.09603): MMD² of CLIP embeddings with a Gaussian kernel, times 1,000.

    As in the authors' code it is the estimate with the least variance, which counts a vector with
    itself and is therefore biased upwards by about ``(1 − mean kernel) · scale · (1/N + 1/M)``.
    The interval is by the jackknife (:func:`mmd_error`).

    Args:
        made, real: CLIP's image embeddings of unit length.
    """
    check_enough("cmmd", 3, made, real)
    check_comparable(made, real)
    kernel = gaussian(sigma)
    sums = _Sums.of(made, real, kernel)
    error = scale * sums.error(unbiased=False)
    return measured(scale * sums.mmd(unbiased=False), error, made)


def mmd_error(made: Features, real: Features, kernel: Kernel, *, unbiased: bool) -> float:
    """Standard error of an estimate of MMD² by the jackknife over pictures.

    Of equally many pictures of both kinds the i-th of each are left out together, which holds for
    pictures of the same captions and for independent ones. Else the two sets are independent
    samples (Arvesen 1969).
    """
    return _Sums.of(made, real, kernel).error(unbiased=unbiased)


@dataclass(frozen=True)
class _Sums:
    """Kernel sums of two sets: within each, across, and of each vector with itself."""

    xx: Tensor  # [N], without the diagonal
    yy: Tensor  # [M]
    xy: Tensor  # [N]
    yx: Tensor  # [M]
    own_x: Tensor  # [N], k(x_i, x_i)
    own_y: Tensor  # [M]
    pairs: Tensor  # [min(N, M)], k(x_i, y_i)

    @staticmethod
    def of(made: Features, real: Features, kernel: Kernel, block: int = BLOCK) -> _Sums:
        cross = kernel_sums(made, real, kernel, block=block)
        own = [kernel_diagonal(one, one, kernel) for one in (made, real)]
        within = [kernel_sums(one, one, kernel, block=block).rows for one in (made, real)]
        return _Sums(
            xx=within[0] - own[0],
            yy=within[1] - own[1],
            xy=cross.rows,
            yx=cross.columns,
            own_x=own[0],
            own_y=own[1],
            pairs=kernel_diagonal(made, real, kernel),
        )

    def mmd(self, *, unbiased: bool) -> float:
        """MMD², unbiased or with the least variance."""
        found = _mmd(
            self.xx.sum(),
            self.yy.sum(),
            self.xy.sum(),
            self.own_x.sum(),
            self.own_y.sum(),
            len(self.xx),
            len(self.yy),
            unbiased=unbiased,
        )
        return float(found)

    def error(self, *, unbiased: bool) -> float:
        """Standard error of :meth:`mmd`."""
        n, m = len(self.xx), len(self.yy)
        xx, yy, xy = self.xx.sum(), self.yy.sum(), self.xy.sum()
        own_x, own_y = self.own_x.sum(), self.own_y.sum()
        less_x = (xx - 2 * self.xx, own_x - self.own_x)
        less_y = (yy - 2 * self.yy, own_y - self.own_y)
        if n == m:
            across = xy - self.xy - self.yx + self.pairs
            both = _mmd(
                less_x[0], less_y[0], across, less_x[1], less_y[1], n - 1, m - 1, unbiased=unbiased
            )
            return math.sqrt(_jackknife(both))
        without_x = _mmd(less_x[0], yy, xy - self.xy, less_x[1], own_y, n - 1, m, unbiased=unbiased)
        without_y = _mmd(xx, less_y[0], xy - self.yx, own_x, less_y[1], n, m - 1, unbiased=unbiased)
        return math.sqrt(_jackknife(without_x) + _jackknife(without_y))


def _mmd(
    xx: Tensor,
    yy: Tensor,
    xy: Tensor,
    own_x: Tensor,
    own_y: Tensor,
    n: int,
    m: int,
    *,
    unbiased: bool,
) -> Tensor:
    """MMD² of sums of a kernel, of one or of many subsets."""
    if unbiased:
        return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)
    return (xx + own_x) / n**2 + (yy + own_y) / m**2 - 2 * xy / (n * m)


def _jackknife(without: Tensor) -> float:
    """Variance of an estimate, of its values [N] without each of the N pictures."""
    n = len(without)
    return float((without - without.mean()).square().sum()) * (n - 1) / n
