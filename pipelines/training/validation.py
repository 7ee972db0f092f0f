"""Validation during training: every model sees the same images, σ and ε."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ediffi_core import draws
from ediffi_core.conditioning import Conditioning
from ediffi_core.degrade import Degradation, super_resolution_pair
from ediffi_core.metrics import by_noise_level, by_picture, paired_gain, validation_losses
from ediffi_core.noise import Interval, NoiseDistribution
from ediffi_core.precond import Denoiser
from pipelines.store.reader import Reader
from pipelines.training.parallel import Communicator

BATCH = 64
"""Images per forward pass."""


def prepare_batch(
    batch: tuple[Tensor, Conditioning], index: Tensor, settings: Mapping[str, Any], purpose: str
) -> tuple[Tensor, Conditioning]:
    """Targets and conditioning of a stage's network.

    A base stage gets the batch as it was read. A super-resolution stage gets random crops, with
    their degraded low-resolution versions in the conditioning.

    Args:
        batch: images [N, 3, R, R] of the stage's resolution, and their conditioning.
        index: [N] indices of the images in the stream; crops and degradations depend on them.
        purpose: name of the random stream, such as ``validation``.
    """
    x, cond = batch
    if how := settings.get("super_resolution"):
        x, small = super_resolution_pair(
            x,
            index,
            factor=how["factor"],
            crop=how["crop"],
            settings=Degradation(**how["degrade"]),
            seed=settings["seed"],
            purpose=purpose,
        )
        cond = replace(cond, low_res=small)
    return x, cond


def validation_batch(
    data: Reader, index: Tensor, settings: Mapping[str, Any]
) -> tuple[Tensor, Conditioning]:
    """Validation images and conditioning: the same for every model, independent of training."""
    return prepare_batch(data.rows(index % len(data)), index, settings, "validation")


class Validation:
    """Validation losses of a model, computed by all processes together (collective calls)."""

    def __init__(self, data: Reader, settings: Mapping[str, Any], comm: Communicator) -> None:
        self.data, self.settings, self.comm = data, settings, comm
        self.interval = Interval(*settings["interval"])
        self.noise = NoiseDistribution(**settings["noise"])

    def losses(self, model: Denoiser, count: int) -> tuple[Tensor, Tensor]:
        """σ [count] and losses [count] of the first draws in this node's interval."""
        rounds = torch.arange(count).split(BATCH * self.comm.size)
        sigma, loss = zip(*(self._round(model, index.split(BATCH)) for index in rounds))
        return torch.cat(sigma), torch.cat(loss)

    def _round(self, model: Denoiser, batches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """One batch per process; surplus processes repeat the last one, as all must compute."""
        index = batches[min(self.comm.rank, len(batches) - 1)]
        seed = self.settings["seed"]
        u = draws.rotated(seed, "validation/sigma", index, len(self.data))
        sigma = self.interval.draw(u, self.noise)
        loss = validation_losses(
            model,
            self.settings["sigma_data"],  # the same λ(σ) for child and parent
            self._batch,
            index=index,
            sigma=sigma,
            batch=BATCH,
            seed=seed,
        )
        found = self.comm.all_gather((sigma, loss))[: len(batches)]
        return torch.cat([s for s, _ in found]), torch.cat([v for _, v in found])

    def _batch(self, index: Tensor) -> tuple[Tensor, Conditioning]:
        x, cond = validation_batch(self.data, index, self.settings)
        return x.to(self.comm.device), cond.to(self.comm.device)

    def losses_by_noise_level(
        self, model: Denoiser, count: int, bins: int
    ) -> tuple[dict[str, float], Tensor]:
        """Mean losses over the interval and over ``bins`` parts of it, and losses [count]."""
        sigma, loss = self.losses(model, count)
        found = {"val_loss": float(loss.mean())}
        for (low, high), part in by_noise_level(sigma, loss, self.noise, bins).items():
            found[f"val_loss_bin/sigma_{low:.3g}_to_{high:.3g}"] = part.mean
        return found, loss

    def gain_over_parent(self, parent: Tensor, child: Tensor) -> dict[str, float]:
        """Metrics of the child's gain over its parent, from losses [N] on the same first draws."""
        return gain_over_parent(parent, child, torch.arange(len(child)) % len(self.data))


def gain_over_parent(parent: Tensor, child: Tensor, picture: Tensor) -> dict[str, float]:
    """Metrics of a child's gain over its parent, from the losses [N] of both on the same draws.

    Args:
        picture: [N] image of each draw. The confidence interval treats images, not draws, as
            independent.
    """
    gain = paired_gain(by_picture(parent, picture), by_picture(child, picture))
    return {
        "val_loss_parent": float(parent.mean()),
        "val_gain": gain.mean,
        "val_gain_low": gain.low,
        "val_gain_high": gain.high,
    }
