"""A training node's own measurements: the same pictures, σ and ε for whoever is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ediffi_core import draws
from ediffi_core.conditioning import Conditioning
from ediffi_core.degrade import Degradation, small_and_large
from ediffi_core.metrics import by_noise_level, by_picture, paired_gain, validation_losses
from ediffi_core.noise import Interval, NoiseDistribution
from ediffi_core.precond import Denoiser
from pipelines.store.reader import Reader
from pipelines.training.parallel import World

BATCH = 64


def as_told(
    read: tuple[Tensor, Conditioning], index: Tensor, settings: Mapping[str, Any], purpose: str
) -> tuple[Tensor, Conditioning]:
    """What a stage's network learns to draw, and what it is told; super-resolution its part.

    Args:
        read: pictures of the stage's resolution, and their conditioning.
        index: [N] places of the images in the stream, which crops and corruptions depend on.
    """
    x, cond = read
    if how := settings.get("super_resolution"):
        x, small = small_and_large(
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


def validation_pictures(
    data: Reader, index: Tensor, settings: Mapping[str, Any]
) -> tuple[Tensor, Conditioning]:
    """The same for every model that is asked; apart from training's draws."""
    return as_told(data.rows(index % len(data)), index, settings, "validation")


class Validation:
    """Losses of a model, shared out over the processes; every one must ask."""

    def __init__(self, data: Reader, settings: Mapping[str, Any], world: World) -> None:
        self.data, self.settings, self.world = data, settings, world
        self.interval = Interval(*settings["interval"])
        self.noise = NoiseDistribution(**settings["noise"])

    def losses(self, model: Denoiser, count: int) -> tuple[Tensor, Tensor]:
        """σ and the loss of the first ``count`` draws of this node's interval."""
        rounds = torch.arange(count).split(BATCH * self.world.size)
        sigma, loss = zip(*(self._round(model, index.split(BATCH)) for index in rounds))
        return torch.cat(sigma), torch.cat(loss)

    def _round(self, model: Denoiser, batches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """A batch for each process; one too many repeats the last, for all must compute."""
        index = batches[min(self.world.rank, len(batches) - 1)]
        seed = self.settings["seed"]
        u = draws.rotated(seed, "validation/sigma", index, len(self.data))
        sigma = self.interval.draw(u, self.noise)
        loss = validation_losses(
            model,
            self.settings["sigma_data"],  # one weight for whoever is asked, child or parent
            self._batch,
            index=index,
            sigma=sigma,
            batch=BATCH,
            seed=seed,
        )
        found = self.world.everyones((sigma, loss))[: len(batches)]
        return torch.cat([s for s, _ in found]), torch.cat([v for _, v in found])

    def _batch(self, index: Tensor) -> tuple[Tensor, Conditioning]:
        x, cond = validation_pictures(self.data, index, self.settings)
        return x.to(self.world.device), cond.to(self.world.device)

    def by_level(self, model: Denoiser, count: int, bins: int) -> tuple[dict[str, float], Tensor]:
        """The loss over the interval and over each part of it; and that of each draw."""
        sigma, loss = self.losses(model, count)
        found = {"val_loss": float(loss.mean())}
        for (low, high), part in by_noise_level(sigma, loss, self.noise, bins).items():
            found[f"val_loss_bin/sigma_{low:.3g}_to_{high:.3g}"] = part.mean
        return found, loss

    def against(self, parent: Tensor, child: Tensor) -> dict[str, float]:
        """Child and parent on the same first draws, picture by picture."""
        return against(parent, child, torch.arange(len(child)) % len(self.data))


def against(parent: Tensor, child: Tensor, picture: Tensor) -> dict[str, float]:
    """What a child gains over its parent, from the losses [N] of both on the same draws.

    Args:
        picture: [N] the number of each draw's picture; the interval is by pictures, for draws of
            one picture are no independent ones.
    """
    gain = paired_gain(by_picture(parent, picture), by_picture(child, picture))
    return {
        "val_loss_parent": float(parent.mean()),
        "val_gain": gain.mean,
        "val_gain_low": gain.low,
        "val_gain_high": gain.high,
    }
