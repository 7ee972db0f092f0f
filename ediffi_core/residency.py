"""Ensembles larger than the device: one expert's weights are there, the others wait elsewhere.

Sampling goes from high σ to low, so an expert is needed once and the one after it is known. The
device holds a single network; when the next expert's turn comes, its weights are copied in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from ediffi_core.ensemble import Ensemble, Expert, Routed
from ediffi_core.noise import Interval, NoiseDistribution
from ediffi_core.precond import Denoiser

Weights = Mapping[str, Tensor]
Load = Callable[[], Weights]


class SwappedEnsemble(Ensemble):
    """Residency ``current`` and ``disk``: one network on the device, filled as σ falls."""

    def __init__(
        self,
        slot: Denoiser,
        intervals: Mapping[str, Interval],
        load: Mapping[str, Load],
        noise: NoiseDistribution,
        *,
        on_route: Callable[[Routed], None] | None = None,
    ) -> None:
        """
        Args:
            slot: the network that every expert's weights fit into, on the device it works on.
            load: expert → a function that brings its weights to host memory. Weights that are
                there already (``current``) cost nothing; a file (``disk``) is read in a thread of
                its own while the expert before it works.
        """
        experts = [Expert(name, interval, slot) for name, interval in intervals.items()]
        super().__init__(experts, noise, on_route=on_route)
        if missing := sorted(set(intervals) - set(load)):
            raise ValueError(f"nothing loads the weights of {', '.join(missing)}")
        self.slot, self.load = slot, dict(load)
        self.loaded: str | None = None
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="expert")
        self._coming: tuple[str, Future[Weights]] | None = None

    def resident(self, expert: Expert) -> Denoiser:
        if self.loaded != expert.name:
            self._fill(self._fetched(expert.name), expert.name)
            self._fetch_after(expert)
        return self.slot

    def _fetched(self, name: str) -> Weights:
        coming, self._coming = self._coming, None
        if coming and coming[0] == name:
            return coming[1].result()
        return self.load[name]()

    def _fetch_after(self, expert: Expert) -> None:
        """Starts to read the next expert down, which a sampler will ask for."""
        below = self.experts.index(expert) - 1
        if below >= 0:
            name = self.experts[below].name
            self._coming = (name, self._reader.submit(self.load[name]))

    @torch.no_grad()
    def _fill(self, weights: Weights, name: str) -> None:
        mine = self.slot.state_dict()
        wrong = sorted(set(mine) ^ set(weights)) or [
            k for k, v in mine.items() if v.shape != weights[k].shape
        ]
        if wrong:
            raise ValueError(
                f"expert {name} has another architecture than the rest ({wrong[0]} differs); "
                "such an ensemble needs residency `all`"
            )
        self.loaded = None  # a copy that fails half way leaves no expert loaded
        for key, value in mine.items():
            value.copy_(weights[key], non_blocking=True)
        self.loaded = name
