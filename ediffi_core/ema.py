"""Moving averages of the weights, their length counted in images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ediffi_core.ema_length import gamma_of

Weights = Mapping[str, Tensor]


class EMA:
    """``ema ← β ema + (1 − β) weights`` with ``β = ½^(images / half-life)``.

    The half-life starts short and grows to its full length, so that early weights are forgotten
    (EDM's ramp-up, 5 % of the images seen).
    """

    def __init__(self, model: nn.Module, halflife_images: float, rampup: float = 0.05) -> None:
        if halflife_images <= 0:
            raise ValueError(f"ema half-life must be positive, got {halflife_images} images")
        self.halflife_images = halflife_images
        self.rampup = rampup
        self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, images: int, batch: int) -> None:
        """Takes in the weights after a step of ``batch`` images, ``images`` seen in all."""
        halflife = min(self.halflife_images, max(images * self.rampup, 1e-8))
        keep = 0.5 ** (batch / halflife)
        averages: list[Tensor] = list(self.weights.values())
        torch._foreach_lerp_(averages, list(model.state_dict().values()), 1 - keep)


class PowerEMA:
    """Averages whose length grows with training, for any other length to be made of afterwards.

    At time t an average weighs the weights of time s by ``(γ+1) s^γ / t^(γ+1)`` (EDM2, section
    3.1). Snapshots of two such averages, stored now and then, suffice for :func:`reconstruct`.
    """

    def __init__(self, model: nn.Module, lengths: Sequence[float] = (0.05, 0.10)) -> None:
        """
        Args:
            lengths: EDM2's σ_rel, each average's width as a share of the training so far.
        """
        self.gammas = {length: gamma_of(length) for length in lengths}
        self.weights = {
            length: {k: v.detach().clone() for k, v in model.state_dict().items()}
            for length in lengths
        }

    @torch.no_grad()
    def update(self, model: nn.Module, images: int, batch: int) -> None:
        """Takes in the weights after a step of ``batch`` images, ``images`` seen in all."""
        now = list(model.state_dict().values())
        for length, gamma in self.gammas.items():
            keep = ((images - batch) / images) ** (gamma + 1)
            torch._foreach_lerp_(list(self.weights[length].values()), now, 1 - keep)


def reconstruct(
    snapshots: Sequence[tuple[int, float, Weights]], images: int, length: float
) -> dict[str, Tensor]:
    """The average of any length at any time up to the last snapshot (EDM2, section 3.2).

    The stored averages are mixed so that their weighting of time comes closest, in least squares,
    to the one asked for, among the mixtures whose shares add up to 1: what the snapshots agree on
    stays as it is, however few there are (our default; EDM2 leaves the sum free). In float64.

    Args:
        snapshots: (images seen, length, weights) of stored :class:`PowerEMA` averages.
        images: the time, in images, of the average asked for.
        length: its σ_rel.
    """
    last = max((at for at, _, _ in snapshots), default=0)
    if not 0 < images <= last:
        raise ValueError(f"the last snapshot is of {last:,} images; {images:,} were asked for")
    times = np.array([at for at, _, _ in snapshots], dtype=np.float64)
    gammas = np.array([gamma_of(given) for _, given, _ in snapshots])
    target = (np.array([float(images)]), np.array([gamma_of(length)]))
    overlap = _inner(times[:, None], gammas[:, None], times[None], gammas[None])
    wanted = _inner(times[:, None], gammas[:, None], target[0][None], target[1][None])
    mix = _closest(overlap, wanted[:, 0])
    out: dict[str, Tensor] = {}
    for share, (_, _, weights) in zip(mix.tolist(), snapshots, strict=True):
        for key, value in weights.items():
            part = value.double() * share
            out[key] = out[key] + part if key in out else part
    return {k: v.to(snapshots[0][2][k].dtype) for k, v in out.items()}


Array = NDArray[np.float64]


def _closest(overlap: Array, wanted: Array) -> Array:
    """The shares m that minimise ``m·A m − 2 m·b`` with ``Σ m = 1``, by Lagrange's multiplier."""
    n = len(wanted)
    system = np.ones((n + 1, n + 1))
    system[:n, :n], system[n, n] = overlap, 0.0
    # Scaled, so that the constraint is no smaller than the overlaps, which are per image.
    scale = np.abs(overlap).max()
    system[:n, :n] /= scale
    shares, *_ = np.linalg.lstsq(system, np.append(wanted / scale, 1.0), rcond=None)
    found: Array = shares[:n]
    return found / found.sum()


def _inner(t_a: Array, g_a: Array, t_b: Array, g_b: Array) -> Array:
    """``∫ p_a(s) p_b(s) ds`` of two weightings of time; in logarithms, the powers are large."""
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
