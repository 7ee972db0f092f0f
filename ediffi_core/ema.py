"""Exponential moving averages (EMA) of the weights, with lengths in images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ediffi_core.ema_length import gamma_of, mix_of

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

    A mixture of the stored averages, by :func:`~ediffi_core.ema_length.mix_of`.

    Args:
        snapshots: (images seen, length, weights) of stored :class:`PowerEMA` averages.
        images: time of the wanted average, in images seen.
        length: σ_rel of the wanted average.

    Returns:
        The averaged weights by name, in their stored dtypes.
    """
    mix = mix_of([(at, given) for at, given, _ in snapshots], images, length)
    return mixed(mix.shares, (weights for _, _, weights in snapshots))


def mixed(shares: Sequence[float], weights: Iterable[Weights]) -> dict[str, Tensor]:
    """The sum of weights times their shares, computed in float64.

    Of the weights one set is needed at a time, so an iterator may read them from files. Memory
    holds the sum, in float64.

    Returns:
        The mixture by name, in the dtypes of the first set.
    """
    total: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for share, given in zip(shares, weights, strict=True):
        for name, value in given.items():
            if name in total:
                total[name].add_(value.double(), alpha=share)
            else:
                total[name], dtypes[name] = value.double() * share, value.dtype
    return {name: total.pop(name).to(dtype) for name, dtype in dtypes.items()}
