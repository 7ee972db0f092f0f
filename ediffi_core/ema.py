"""Exponential moving averages (EMA) of the weights, with lengths in images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ediffi_core.ema_length import gamma_of

Weights = Mapping[str, Tensor]


class EMA:
    """``ema ← β ema + (1 − β) weights`` with ``β = ½^(batch / half-life)``.

    The half-life ramps up with training, so that early weights are forgotten (as in EDM's code).
    """

    def __init__(self, model: nn.Module, halflife_images: float, rampup: float = 0.05) -> None:
        """
        Args:
            halflife_images: half-life once the ramp-up is over.
            rampup: the half-life is at most this share of the images seen.
        """
        if halflife_images <= 0:
            raise ValueError(f"ema half-life must be positive, got {halflife_images} images")
        self.halflife_images = halflife_images
        self.rampup = rampup
        self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, images: int, batch: int) -> None:
        """Add the weights after a step of ``batch`` images, with ``images`` seen in all."""
        halflife = min(self.halflife_images, max(images * self.rampup, 1e-8))
        keep = 0.5 ** (batch / halflife)
        averages: list[Tensor] = list(self.weights.values())
        torch._foreach_lerp_(averages, list(model.state_dict().values()), 1 - keep)


class PowerEMA:
    """Power-function averages (EDM2, arXiv:2312.02696, section 3.1): lengths grow with training.

    At time t the weights of time s count ``(γ+1) s^γ / t^(γ+1)``. From occasional snapshots of two
    such averages, :func:`reconstruct` makes the average of any other length.
    """

    def __init__(self, model: nn.Module, lengths: Sequence[float] = (0.05, 0.10)) -> None:
        """
        Args:
            lengths: σ_rel of each average: its width as a share of the training so far.
        """
        self.gammas = {length: gamma_of(length) for length in lengths}
        self.weights = {
            length: {k: v.detach().clone() for k, v in model.state_dict().items()}
            for length in lengths
        }

    @torch.no_grad()
    def update(self, model: nn.Module, images: int, batch: int) -> None:
        """Add the weights after a step of ``batch`` images, with ``images`` seen in all."""
        now = list(model.state_dict().values())
        for length, gamma in self.gammas.items():
            keep = ((images - batch) / images) ** (gamma + 1)
            torch._foreach_lerp_(list(self.weights[length].values()), now, 1 - keep)


def reconstruct(
    snapshots: Sequence[tuple[int, float, Weights]], images: int, length: float
) -> dict[str, Tensor]:
    """The average of any length at any time up to the last snapshot (EDM2, section 3.2).

    A mixture of the stored averages approximates the wanted weighting of time in least squares,
    computed in float64. Its shares add up to 1, so weights that all snapshots agree on stay
    unchanged (our default; EDM2 does not constrain the sum).

    Args:
        snapshots: (images seen, length, weights) of stored :class:`PowerEMA` averages.
        images: time of the wanted average, in images seen.
        length: σ_rel of the wanted average.

    Returns:
        The averaged weights by name, in their stored dtypes.
    """
    last = max((at for at, _, _ in snapshots), default=0)
    if not 0 < images <= last:
        raise ValueError(f"the last snapshot is at {last:,} images, but {images:,} were asked for")
    times = np.array([at for at, _, _ in snapshots], dtype=np.float64)
    gammas = np.array([gamma_of(given) for _, given, _ in snapshots])
    target = (np.array([float(images)]), np.array([gamma_of(length)]))
    overlap = _inner_products(times[:, None], gammas[:, None], times[None], gammas[None])
    wanted = _inner_products(times[:, None], gammas[:, None], target[0][None], target[1][None])
    mix = _best_mix(overlap, wanted[:, 0])
    out: dict[str, Tensor] = {}
    for share, (_, _, weights) in zip(mix.tolist(), snapshots, strict=True):
        for key, value in weights.items():
            part = value.double() * share
            out[key] = out[key] + part if key in out else part
    return {k: v.to(snapshots[0][2][k].dtype) for k, v in out.items()}


Array = NDArray[np.float64]


def _best_mix(overlap: Array, wanted: Array) -> Array:
    """The shares m that minimise ``m·A m − 2 m·b`` with ``Σ m = 1``, by a Lagrange multiplier."""
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
    common = np.minimum(t_a, t_b)
    log = (
        np.log(g_a + 1)
        + np.log(g_b + 1)
        - np.log(g_a + g_b + 1)
        + (g_a + g_b + 1) * np.log(common)
        - (g_a + 1) * np.log(t_a)
        - (g_b + 1) * np.log(t_b)
    )
    return np.exp(log)
