"""The stages of a trained cascade: their weights, their settings, and drawing with them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ediffi_core import cascade
from ediffi_core.cascade import CascadeStage
from ediffi_core.checkpoint import read_checked
from ediffi_core.conditioning import Conditioning
from ediffi_core.ensemble import Ensemble, Expert
from ediffi_core.guidance import (
    Scale,
    Threshold,
    dynamic_threshold,
    on_interval,
    per_expert,
    static_threshold,
)
from ediffi_core.noise import Interval
from ediffi_core.precond import Denoiser
from ediffi_core.residency import Load, SwappedEnsemble
from ediffi_core.sampling import Churn
from pipelines.spec.sampling import Guidance, Sampling, SamplingWarning
from pipelines.store.artifacts import Store

Residency = Literal["all", "current", "disk"]
Weights = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Slot:
    """One slot of an ensemble: an interval, and the weights that serve it."""

    path: str
    """Path of the weights in the store."""

    expert: str
    """Expert that the weights belong to: the slot's own, or an ancestor that it did not beat."""

    interval: Interval


def load_ensemble(
    store: Store,
    slots: Mapping[str, Slot],
    residency: Residency = "all",
    device: torch.device | str = "cpu",
) -> Ensemble:
    """Load an ensemble from its slots by name.

    Args:
        residency: where the experts' weights are. ``all``: on the device. ``current``: one on the
            device, the others in host memory. ``disk``: one on the device, the next being read.

    Raises:
        ValueError: The intervals do not cover p(σ) exactly once; a checkpoint is damaged, belongs
            to another expert or was not trained on its slot's interval; or the experts differ in
            architecture, noise distribution or sigma_data.
    """
    read = {
        slot.path: read_checked(store.local(slot.path), expert=slot.expert, interval=slot.interval)
        for slot in slots.values()
    }
    cards = [card for _, card in read.values()]
    if len({(c.noise, c.network, c.sigma_data) for c in cards}) > 1:
        raise ValueError(
            f"experts {', '.join(slots)} differ in noise distribution, network or sigma_data; "
            "an ensemble needs one of each"
        )

    def built(weights: Mapping[str, Tensor]) -> Denoiser:
        denoiser = Denoiser.of(cards[0].network, cards[0].sigma_data)
        denoiser.load_state_dict(weights)
        return denoiser.eval().requires_grad_(False).to(device)

    if residency == "all":
        once = {path: built(weights) for path, (weights, _) in read.items()}
        loaded = [Expert(name, s.interval, once[s.path]) for name, s in slots.items()]
        return Ensemble(loaded, cards[0].noise)
    load: dict[str, Load] = {}
    for name, slot in slots.items():
        file = store.local(slot.path)
        load[name] = (
            partial(lambda w: w, read[slot.path][0])
            if residency == "current"
            else partial(lambda f: read_checked(f)[0], file)
        )
    network = built(next(iter(read.values()))[0])
    intervals = {name: slot.interval for name, slot in slots.items()}
    return SwappedEnsemble(network, intervals, load, cards[0].noise)


def load_stages(
    store: Store,
    stages: Sequence[Mapping[str, Any]],
    weights: Weights,
    residency: Residency = "all",
    device: torch.device | str = "cpu",
) -> list[CascadeStage]:
    """Load the stages of a cascade from a node's settings.

    Args:
        stages: name, experts and sampling settings of every stage, from the smallest on.
        weights: ``stage/slot`` → ``path`` of the weights in the store, and their ``expert``.
    """

    def at(slot: str) -> tuple[str, str]:
        return weights[slot]["path"], weights[slot]["expert"]

    found = []
    for s in stages:
        slots = {e: Slot(*at(f"{s['name']}/{e}"), Interval(*q)) for e, q in s["experts"].items()}
        ensemble = load_ensemble(store, slots, residency, device)
        plain = CascadeStage(name=s["name"], denoiser=ensemble, resolution=s["resolution"])
        found.append(configured(plain, Sampling.from_settings(s["sampling"])))
    return found


def configured(stage: CascadeStage, sampling: Sampling) -> CascadeStage:
    """The stage of an ensemble with these settings, whatever it had before.

    Warns:
        SamplingWarning: A setting has no effect.

    Raises:
        ValueError: Guidance is set for an expert that the ensemble has not.
    """
    ensemble = stage.denoiser if isinstance(stage.denoiser, Ensemble) else None
    experts = [e.name for e in ensemble.experts] if ensemble else []
    for name, why in sampling.ineffective(resolution=stage.resolution, experts=experts):
        warnings.warn(f"{stage.name}: `{name}` has no effect {why}", SamplingWarning, stacklevel=2)
    churn = partial(_churn, sampling.churn.settings()) if sampling.churn else None
    return replace(
        stage,
        steps=sampling.steps,
        solver=sampling.solver,
        guidance=_scale(stage, sampling.guidance),
        threshold=_threshold(sampling),
        sigma_min=sampling.sigma_min,
        sigma_max=sampling.sigma_max,
        rho=sampling.rho,
        churn=churn,
        history=sampling.history,
        tile=sampling.tile,
        overlap=sampling.overlap,
        precision=sampling.precision,
    )


def _churn(settings: Mapping[str, float], noise: Callable[[int], Tensor]) -> Churn:
    return Churn(**settings, noise=noise)


def _scale(stage: CascadeStage, guidance: Guidance) -> Scale:
    scale: Scale = guidance.scale
    if guidance.experts:
        if not isinstance(stage.denoiser, Ensemble):
            raise ValueError(f"stage {stage.name} has no experts to guide one by one")
        scale = per_expert(stage.denoiser, guidance.experts, guidance.scale)
    return on_interval(scale, *guidance.interval) if guidance.interval else scale


def _threshold(sampling: Sampling) -> Threshold | None:
    if sampling.threshold == "dynamic":
        return dynamic_threshold(sampling.percentile)
    return static_threshold if sampling.threshold == "static" else None


def draw(
    stages: Sequence[CascadeStage],
    cond: Conditioning,
    *,
    seed: int | Sequence[int],
    first: int = 0,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Generate images with every stage of a cascade.

    Args:
        cond: conditioning of N images.
        seed: one seed for all, then image i depends on (seed, i) alone; or one seed per image, then
            it depends on its seed alone.
        first: number of the first image, with one seed for all.
        batch: images generated at once.
        progress: called with the number of finished images.

    Returns:
        Stage name → images, uint8 [N, R, R, 3].
    """
    found: dict[str, list[Tensor]] = {stage.name: [] for stage in stages}
    for at in range(0, len(cond), batch):
        rows = cond[slice(at, at + batch)]
        mine, number = (seed, first + at) if isinstance(seed, int) else (seed[at : at + batch], 0)
        for name, x in cascade.sample(stages, rows, seed=mine, first=number):
            found[name].append(((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu())
        if progress:
            progress(at + len(rows))
    return {name: torch.cat(parts) for name, parts in found.items()}
