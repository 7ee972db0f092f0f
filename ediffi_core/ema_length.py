"""Power averages of the weights (EDM2, arXiv:2312.02696): their lengths, and how snapshots of some
make up another. Does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


def gamma_of(length: float) -> float:
    """The exponent γ of a power average: ``σ_rel² = (γ+1) / ((γ+2)² (γ+3))`` (EDM2, section 3.1).

    Args:
        length: σ_rel, the average's width as a share of the training so far.

    Raises:
        ValueError: The length lies outside (0, 0.288).
    """
    if not 0 < length < 12**-0.5:  # γ = 0, the plain mean, is the longest
        raise ValueError(f"a power average's length must lie in (0, 0.288), got {length}")
    import numpy as np

    inverse = length**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(roots.real.max())


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How much of each snapshot makes up an average."""

    shares: tuple[float, ...]
    """One for each snapshot; they add up to 1 and may be negative."""

    error: float
    """Distance of the mixture's weighting of time from the wanted one, relative to the wanted
    one's size (in L²). 0 is exact."""


def mix_of(snapshots: Sequence[tuple[int, float]], images: int, length: float) -> Mix:
    """The mixture of stored averages that comes closest to one of any length (EDM2, section 3.2).

    It approximates the wanted weighting of time in least squares. Its shares add up to 1, so
    weights that all snapshots agree on stay unchanged (our default; EDM2 does not constrain the
    sum).

    Args:
        snapshots: (images seen, length) of the stored averages.
        images: time of the wanted average, in images seen; at most that of the last snapshot.
        length: σ_rel of the wanted average.

    Raises:
        ValueError: There is no snapshot as late, or the length lies outside (0, 0.288).
    """
    import numpy as np

    last = max((at for at, _ in snapshots), default=0)
    if not 0 < images <= last:
        raise ValueError(f"the last snapshot is at {last:,} images, but {images:,} were asked for")
    times = np.array([at for at, _ in snapshots], dtype=np.float64)
    gammas = np.array([gamma_of(given) for _, given in snapshots])
    target = (np.array([float(images)]), np.array([gamma_of(length)]))
    overlap = _inner_products(times[:, None], gammas[:, None], times[None], gammas[None])
    wanted = _inner_products(times[:, None], gammas[:, None], target[0][None], target[1][None])
    shares = _best_mix(overlap, wanted[:, 0])
    size = float(_inner_products(*target, *target)[0])
    away = float(shares @ overlap @ shares - 2 * shares @ wanted[:, 0]) + size
    return Mix(shares=tuple(shares.tolist()), error=math.sqrt(max(away, 0.0) / size))


def _best_mix(overlap: Array, wanted: Array) -> Array:
    """The shares m that minimise ``m·A m − 2 m·b`` with ``Σ m = 1``, by a Lagrange multiplier."""
    import numpy as np

    n = len(wanted)
    system = np.ones((n + 1, n + 1))
    system[:n, :n], system[n, n] = overlap, 0.0
    # Scale the overlaps, which are per image, to the magnitude of the constraint.
    scale = np.abs(overlap).max()
    system[:n, :n] /= scale
    shares, *_ = np.linalg.lstsq(system, np.append(wanted / scale, 1.0), rcond=None)
    found: Array = shares[:n]
    return found / found.sum()


def _inner_products(t_a: Array, g_a: Array, t_b: Array, g_b: Array) -> Array:
    """``∫ p_a(s) p_b(s) ds`` of two weightings of time, in logarithms against overflow."""
    import numpy as np

    common = np.minimum(t_a, t_b)
    log = (
        np.log(g_a + 1)
        + np.log(g_b + 1)
        - np.log(g_a + g_b + 1)
        + (g_a + g_b + 1) * np.log(common)
        - (g_a + 1) * np.log(t_a)
        - (g_b + 1) * np.log(t_b)
    )
    found: Array = np.exp(log)
    return found
