"""Denoising losses of an ensemble's experts over the length of their averages, for ``ediffi ema``.

Every length is measured on the same validation pictures, σ and ε, so gains over the stored weights
are paired. A loss is the mean over p(σ) in the expert's interval. Conditioning is text only, as in
an evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ediffi_core.checkpoint import build_denoiser, read_checked
from ediffi_core.conditioning import Conditioning
from ediffi_core.metrics import Estimate, by_picture, paired_gain, validation_losses
from ediffi_core.noise import NoiseDistribution
from pipelines.evaluation.losses import strata_of
from pipelines.models import averages
from pipelines.models.averages import Trained
from pipelines.models.stages import Slot, slots_of
from pipelines.store.artifacts import Store
from pipelines.store.reader import Reader
from pipelines.training.validation import validation_batch

STORED = None
"""Stands for the stored weights, among lengths."""

BATCH = 64
"""Draws per forward pass."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One length of one expert, or of the whole ensemble."""

    length: float | None
    """σ_rel; None for the stored weights."""

    loss: Estimate
    gain: Estimate | None
    """Over the stored weights, paired; the intervals of all lengths hold together at 95 %. None
    for the stored weights."""

    error: float
    """Of the mixture of snapshots, the worst among the experts; 0 for the stored weights."""

    def data(self) -> dict[str, Any]:
        """The row as JSON; None where an interval is infinite or a loss is not finite."""

        def finite(value: float) -> float | None:
            return value if math.isfinite(value) else None

        found: dict[str, Any] = {"length": self.length, "error": self.error}
        for name, of in (("loss", self.loss), ("gain", self.gain)):
            values = {"": of.mean, "_low": of.low, "_high": of.high} if of else {}
            found |= {f"{name}{end}": finite(value) for end, value in values.items()}
        return found


@dataclass(frozen=True, kw_only=True)
class Found:
    """All that was measured of a stage."""

    stage: str
    draws: int
    """Per expert."""

    pictures: int
    sigma: Mapping[str, tuple[float, float]]
    """Slot → (σ_lo, σ_hi), highest noise first."""

    rows: Mapping[str, Sequence[Row]]
    """Slot → its rows, the stored weights first."""

    overall: Sequence[Row]
    """Of the ensemble: the mean over p(σ)."""

    def data(self) -> dict[str, Any]:
        """What was measured as JSON."""
        return {
            "stage": self.stage,
            "draws": self.draws,
            "pictures": self.pictures,
            "experts": {
                name: {
                    "sigma_lo": low,
                    "sigma_hi": high if math.isfinite(high) else None,
                    "rows": [row.data() for row in self.rows[name]],
                    "best": best(self.rows[name]).length,
                }
                for name, (low, high) in self.sigma.items()
            },
            "overall": {
                "rows": [row.data() for row in self.overall],
                "best": best(self.overall).length,
            },
        }


def measure(
    store: Store,
    manifest: Mapping[str, Any],
    stage: str,
    lengths: Sequence[float],
    *,
    draws: int,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """Measure the losses of every expert of a stage, on its own interval.

    One network is on the device at a time. Averages are computed in memory and not stored.

    Args:
        manifest: contents of an ``ensemble.json``.
        lengths: σ_rel of the averages to compare with the stored weights.
        draws: number of draws (a picture, σ and ε) in each expert's interval.
        progress: called with the number of measured networks, and of all.

    Raises:
        ValueError: An expert has no snapshots, weights are damaged, the ensemble's file does not
            name its validation data, or there are fewer than two pictures.
    """
    settings = next(s for s in manifest["stages"] if s["name"] == stage)
    slots = slots_of(settings, manifest["weights"])
    trained = {name: Trained.of(store, slot.path) for name, slot in slots.items()}
    mixes = {n: {length: t.mix(length).error for length in lengths} for n, t in trained.items()}
    if "data" not in manifest:
        raise ValueError("the ensemble is in an older format; run its pipeline again")
    data = manifest["data"]["validation"]
    reader = Reader(store, data["folder"], settings["resolution"])
    if len(reader) < 2:
        raise ValueError(f"an interval needs 2 validation pictures, {data['folder']} has 1")
    like = next(iter(trained.values())).settings
    how = {
        "draws": draws,
        "experts": {n: list(q) for n, q in settings["experts"].items()},
        "cut": like["noise"],
        "noise": like["noise"],
        "sigma_data": like["sigma_data"],
        "seed": like["seed"],
        **{k: settings[k] for k in ("super_resolution",) if k in settings},
    }
    strata = strata_of(how)
    index, sigma = strata.draw(draws, pictures=len(reader), seed=how["seed"])
    bounds = _bounds(slots, NoiseDistribution(**like["noise"]))
    every = [STORED, *lengths]
    losses = {length: torch.empty(len(index), dtype=torch.float64) for length in every}

    def batches(part: Tensor) -> tuple[Tensor, Conditioning]:
        x, cond = validation_batch(reader, part, how)
        absent = torch.zeros(len(cond), dtype=torch.bool)
        return x.to(device), cond.keep({"clip_image": absent}, ()).to(device)

    measured = 0
    for name, slot in slots.items():
        low, high = bounds[name]
        mine = (sigma >= low) & (sigma < high)
        for length, network in _networks(store, slot, trained[name], every):
            losses[length][mine] = validation_losses(
                network.to(device),
                how["sigma_data"],
                batches,
                index=index[mine],
                sigma=sigma[mine],
                batch=BATCH,
                seed=how["seed"],
            ).double()
            measured += 1
            if progress:
                progress(measured, len(slots) * len(every))
    picture, weight = index % len(reader), strata.weights(sigma, strata.noise)

    def over_noise(low: float, high: float) -> dict[float | None, Tensor]:
        """Length → one value per picture, whose mean is that over p(σ) in an interval."""
        mine = (sigma >= low) & (sigma < high)
        return {le: by_picture(of[mine], picture[mine], weight[mine]) for le, of in losses.items()}

    falling = sorted(slots, key=lambda name: -bounds[name][0])
    return Found(
        stage=stage,
        draws=draws,
        pictures=min(draws, len(reader)),
        sigma={name: bounds[name] for name in falling},
        rows={name: _rows(over_noise(*bounds[name]), mixes[name]) for name in falling},
        overall=_rows(
            over_noise(0.0, math.inf),
            {length: max(errors[length] for errors in mixes.values()) for length in lengths},
        ),
    )


def _bounds(slots: Mapping[str, Slot], noise: NoiseDistribution) -> dict[str, tuple[float, float]]:
    """Slot → (σ_lo, σ_hi)."""
    return {name: slot.interval.bounds(noise) for name, slot in slots.items()}


def _networks(
    store: Store, slot: Slot, trained: Trained, lengths: Sequence[float | None]
) -> Iterator[tuple[float | None, torch.nn.Module]]:
    """The slot's denoiser with the weights of each length: one network, filled again and again."""
    weights, card = read_checked(store.local(slot.path), expert=slot.expert, interval=slot.interval)
    network = build_denoiser(weights, card)
    for length in lengths:
        if length is not STORED:
            weights, _ = averages.mixed(store, trained, length)
        network.load_state_dict(weights)
        yield length, network


def _rows(values: Mapping[float | None, Tensor], errors: Mapping[float, float]) -> list[Row]:
    """
    Args:
        values: length → one value per picture.
    """
    stored = values[STORED]
    return [
        Row(
            length=length,
            loss=Estimate.of(of),
            gain=None if length is STORED else paired_gain(stored, of, len(errors)),
            error=0.0 if length is STORED else errors[length],
        )
        for length, of in values.items()
    ]


def best(rows: Sequence[Row]) -> Row:
    """The row with the lowest mean loss; of a loss that is not finite, the last."""
    return min(rows, key=lambda row: row.loss.mean if math.isfinite(row.loss.mean) else math.inf)
