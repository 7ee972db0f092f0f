"""Builds an ensemble from the files of its experts, with one file at a time in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from ediffi_core.checkpoint import Card, build_denoiser
from ediffi_core.ensemble import Ensemble, Expert
from ediffi_core.noise import Interval
from ediffi_core.precond import Denoiser
from ediffi_core.residency import Load, SwappedEnsemble, Weights

Residency = Literal["all", "current", "disk"]
"""Where experts are: all on the device; one there and the others in host memory, or on disk."""

RESIDENCIES: tuple[Residency, ...] = ("all", "current", "disk")


@dataclass(frozen=True)
class Source:
    """The weights of one slot of an ensemble. Slots may share a file."""

    place: str
    """Name of the file, the same for all slots that share it."""

    interval: Interval
    read: Callable[[], tuple[Weights, Card]]
    """Reads the file; raises ValueError if it does not fit the slot."""


def load_functions(
    sources: Mapping[str, Source], kept: Mapping[str, Weights] | None = None
) -> dict[str, Load]:
    """Slot → function that returns its weights.

    Args:
        kept: place → weights in memory; by default they are read from the files.
    """
    if kept is not None:
        return {name: partial(kept.__getitem__, source.place) for name, source in sources.items()}

    def read(source: Source) -> Weights:
        return source.read()[0]

    return {name: partial(read, source) for name, source in sources.items()}


def build_ensemble(
    sources: Mapping[str, Source],
    residency: Residency = "all",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Ensemble:
    """Read and check every file once, and build the ensemble.

    Args:
        sources: Slot → its weights.
        residency: where the experts' weights are.
        device: where the networks run.
        dtype: type of the networks' weights.

    Raises:
        ValueError: The intervals do not cover p(σ) exactly once; a file does not fit its slot; or
            the experts differ in architecture, noise distribution or sigma_data.
    """
    denoisers: dict[str, Denoiser] = {}
    kept: dict[str, Weights] = {}
    cards: dict[str, Card] = {}
    for source in sources.values():
        place = source.place
        if place in cards and cards[place].interval.holds(source.interval):
            continue
        weights, card = source.read()
        cards[place] = card
        if len({(c.noise, c.network, c.sigma_data) for c in cards.values()}) > 1:
            raise ValueError(
                f"experts {', '.join(sources)} differ in noise distribution, network or "
                "sigma_data; an ensemble needs one of each"
            )
        if residency == "all" or not denoisers:
            denoiser = build_denoiser(weights, card)
            cast_parameters(denoiser, dtype)
            denoisers[place] = denoiser.to(device)
        if residency == "current":
            kept[place] = weights
        del weights  # before the next file is read
    noise = next(iter(cards.values())).noise
    if residency == "all":
        experts = [Expert(n, s.interval, denoisers[s.place]) for n, s in sources.items()]
        return Ensemble(experts, noise)
    [network] = denoisers.values()
    intervals = {name: source.interval for name, source in sources.items()}
    load = load_functions(sources, kept if residency == "current" else None)
    return SwappedEnsemble(network, intervals, load, noise)


def cast_parameters(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast parameters to a type. Buffers stay, since noise levels need all their bits."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
