"""The stages of a trained cascade: their weights, their settings, and drawing with them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ediffi_core import cascade
from ediffi_core.attention_maps import AttentionRecorder
from ediffi_core.cascade import CascadeStage
from ediffi_core.checkpoint import read_checked
from ediffi_core.conditioning import Conditioning
from ediffi_core.control import Control
from ediffi_core.ensemble import Ensemble
from ediffi_core.loading import Residency, Source, build_ensemble, load_functions
from ediffi_core.noise import Interval
from ediffi_core.precond import Denoiser
from ediffi_core.residency import SwappedEnsemble
from ediffi_core.sampling import Callback
from ediffi_core.stage_settings import DEFAULTS, with_settings
from ediffi_core.unet import UNet
from pipelines.models import averages
from pipelines.models.watch import Abandoned, StepDone, Watch
from pipelines.spec.sampling import Sampling, SamplingWarning
from pipelines.store.artifacts import Store

Weights = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Slot:
    """One slot of an ensemble: an interval, and the weights that serve it."""

    path: str
    """Path of the weights in the store."""

    expert: str
    """Expert that the weights belong to: the slot's own, or an ancestor that it did not beat."""

    interval: Interval

    any_interval: bool = False
    """Whether the weights may have been trained on another interval, as for a control."""

    sha256: str | None = None
    """Of the weights; None if they are named without, and are then not compared."""


def load_ensemble(
    store: Store,
    slots: Mapping[str, Slot],
    residency: Residency = "all",
    device: torch.device | str = "cpu",
    ema_length: float | None = None,
) -> Ensemble:
    """Load an ensemble from its slots by name.

    Args:
        ema_length: σ_rel of the averages to load, made from the experts' snapshots; None for the
            weights at the slots' paths, which are compared with the slots' sha256.
        residency: where the experts' weights are. ``all``: on the device. ``current``: one on the
            device, the others in host memory. ``disk``: one on the device, the next being read.

    Raises:
        ValueError: The intervals do not cover p(σ) exactly once; a checkpoint is damaged, belongs
            to another expert, has been replaced or was not trained on its slot's interval; the
            experts differ in architecture, noise distribution or sigma_data; or one has no
            snapshots.
    """
    return build_ensemble(_sources(store, slots, ema_length), residency, device)


def _sources(store: Store, slots: Mapping[str, Slot], length: float | None) -> dict[str, Source]:
    """Slot → where its weights are, or their average of another length."""
    paths = {slot.path for slot in slots.values()}
    files = {
        path: store.local(path) if length is None else averages.file_of(store, path, length)
        for path in paths
    }

    def source(slot: Slot) -> Source:
        needed = None if slot.any_interval else slot.interval
        sha256 = slot.sha256 if length is None else None  # an average has one of its own
        read = partial(
            read_checked, files[slot.path], expert=slot.expert, interval=needed, sha256=sha256
        )
        return Source(slot.path, slot.interval, read)

    return {name: source(slot) for name, slot in slots.items()}


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
        weights: ``stage/slot`` → ``path`` of the weights in the store, their ``expert`` and
            ``sha256``; with ``any_interval``, that they may serve noise that they were not trained
            on.
    """

    return StageLoader(store, stages, weights, residency, device).load()


class StageLoader:
    """Loads the ensembles of a cascade, and other averages of their weights into them."""

    def __init__(
        self,
        store: Store,
        stages: Sequence[Mapping[str, Any]],
        weights: Weights,
        residency: Residency = "all",
        device: torch.device | str = "cpu",
    ) -> None:
        """
        Args:
            stages, weights: as of :func:`load_stages`.
        """
        self.store, self.stages = store, stages
        self.residency, self.device = residency, device
        self.slots = {s["name"]: slots_of(s, weights) for s in stages}
        self.lengths: dict[str, float | None] = {}
        """Stage → ``ema_length`` of its weights. A stage is missing while weights are mixed up, as
        after an error amid loading."""

    def load(self) -> list[CascadeStage]:
        """Load all stages with their own settings."""
        found = []
        for s in self.stages:
            name, sampling = s["name"], Sampling.from_settings(s["sampling"])
            length = sampling.ema_length
            slots = self.slots[name]
            ensemble = load_ensemble(self.store, slots, self.residency, self.device, length)
            self.lengths[name] = length
            plain = CascadeStage(name=name, denoiser=ensemble, resolution=s["resolution"])
            found.append(configured(plain, sampling))
        return found

    def set_length(self, stage: CascadeStage, length: float | None) -> None:
        """Replace the weights of a stage's ensemble by averages of another length, in place.

        Does nothing if it has them. After an error, the ensemble has its former weights, or the
        next call loads anew.

        Args:
            stage: one that :meth:`load` returned.
            length: the ``ema_length``; None for the stored weights.

        Raises:
            ValueError: As of :func:`load_ensemble`.
        """
        if stage.name in self.lengths and self.lengths[stage.name] == length:
            return
        ensemble = stage.denoiser
        sources = _sources(self.store, self.slots[stage.name], length)
        checked = ((s.place, s.read()[0]) for s in {s.place: s for s in sources.values()}.values())
        self.lengths.pop(stage.name, None)
        if isinstance(ensemble, SwappedEnsemble):
            kept = dict(checked) if self.residency == "current" else None
            ensemble.take_from(load_functions(sources, kept))
        else:
            assert isinstance(ensemble, Ensemble)
            denoisers = {sources[e.name].place: e.denoiser for e in ensemble.experts}
            for place, weights in checked:
                denoisers[place].load_state_dict(weights)
        self.lengths[stage.name] = length


def slots_of(stage: Mapping[str, Any], weights: Weights) -> dict[str, Slot]:
    """The slots of a stage's ensemble by name; arguments as of :func:`load_stages`."""
    found = {}
    for name, quantiles in stage["experts"].items():
        at = weights[f"{stage['name']}/{name}"]
        anywhere = at.get("any_interval", False)
        interval = Interval(*quantiles)
        found[name] = Slot(at["path"], at["expert"], interval, anywhere, at.get("sha256"))
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
    sampling.warn_ineffective(stage.name, resolution=stage.resolution, experts=experts)
    if ensemble and sampling.tile is not None and sampling.tile < stage.resolution:
        _check_tiles(stage.name, sampling.overlap, ensemble.experts[0].denoiser)
    given = sampling.model_dump()
    return with_settings(stage, {name: given[name] for name in DEFAULTS})


def _check_tiles(stage: str, overlap: int, denoiser: Denoiser) -> None:
    """Warn of tiles whose pixels a network groups otherwise than those of the whole picture."""
    if isinstance(denoiser.net, UNet) and overlap % (factor := denoiser.net.config.factor):
        message = (
            f"{stage}: tiles show with `overlap` {overlap}; write a multiple of {factor}, by which "
            "the network shrinks pictures"
        )
        warnings.warn(message, SamplingWarning, stacklevel=3)


def draw(
    stages: Sequence[CascadeStage],
    cond: Conditioning,
    *,
    seed: int | Sequence[int],
    first: int | Sequence[int] = 0,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
    control: Control | None = None,
    watch: Watch | None = None,
    attention: AttentionRecorder | None = None,
) -> dict[str, Tensor]:
    """Generate images with every stage of a cascade.

    Args:
        cond: conditioning of N images.
        seed: one seed for all, then image i depends on (seed, first + i) alone; or one seed per
            image, then it depends on its seed and ``first`` alone.
        first: number of the first image; or one number per image.
        batch: images generated at once.
        progress: called with the number of finished images.
        control: as for :func:`ediffi_core.cascade.sample`.
        watch: follows the drawing, which must fit in one batch.
        attention: records where images attend to their prompts; they must fit in one batch.

    Returns:
        Stage name → images, uint8 [N, R, R, 3].

    Raises:
        Abandoned: None of the images is wanted any more.
        ValueError: There are more images than a batch, and a watch or recorder; or as of
            :func:`ediffi_core.cascade.sample`.
    """
    if (watch or attention) and len(cond) > batch:
        raise ValueError(
            f"`watch` and `attention` follow images that are drawn at once, but {len(cond)} do not "
            f"fit in `batch={batch}`; write {len(cond)}"
        )
    followed: dict[str, Any] = {}
    if watch:
        followed = {"wanted": partial(_wanted, watch), "callback": Reports(watch, stages).callback}
    found: dict[str, list[Tensor]] = {stage.name: [] for stage in stages}
    for at in range(0, len(cond), batch):
        mine = slice(at, at + batch)
        number = first[mine] if not isinstance(first, int) else first
        if isinstance(seed, int) and isinstance(first, int):
            number = first + at
        drawn = cascade.sample(
            stages,
            cond[mine],
            seed=seed if isinstance(seed, int) else seed[mine],
            first=number,
            control=control and control[mine],
            attention=attention,
            **followed,
        )
        for name, x in drawn:
            found[name].append(as_pictures(x))
        if progress:
            progress(min(at + batch, len(cond)))
    return {name: torch.cat(parts) for name, parts in found.items()}


def as_pictures(x: Tensor) -> Tensor:
    """Images [N, 3, R, R] in [-1, 1], other values clipped. → uint8 [N, R, R, 3] on the CPU"""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu()


def _wanted(watch: Watch) -> Sequence[bool]:
    wanted = watch.wanted()
    if not any(wanted):
        raise Abandoned("no picture of the batch is wanted any more")
    return wanted


class Reports:
    """Tells a watch of every step of a cascade's stages."""

    def __init__(self, watch: Watch, stages: Sequence[CascadeStage]) -> None:
        self.watch = watch
        self.stages = {stage.name: stage for stage in stages}
        self.last = time.perf_counter()

    def callback(self, name: str) -> Callback:
        """The callback for the solver of a stage."""
        return partial(self._step, self.stages[name])

    def _step(self, stage: CascadeStage, state: dict[str, Any]) -> None:
        now = time.perf_counter()
        ensemble, sigma = stage.denoiser, state["sigma"]
        self.watch.step(
            StepDone(
                stage=stage.name,
                step=state["step"],
                steps=stage.steps,
                sigma=sigma,
                expert=ensemble.expert_at(sigma).name if isinstance(ensemble, Ensemble) else "",
                seconds=now - self.last,
                pictures=lambda: as_pictures(state["denoised"]).numpy(),
            )
        )
        self.last = time.perf_counter()
