"""Ensembles larger than the device: only one expert's weights are there at a time.

Sampling goes from high σ to low, so every expert is needed once, in a known order. The device holds
a single network, and the next expert's weights are copied into it when σ reaches its interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from ediffi_core.ensemble import Ensemble, Expert, RouteEvent
from ediffi_core.noise import Interval, NoiseDistribution
from ediffi_core.precond import Denoiser

Weights = Mapping[str, Tensor]
Load = Callable[[], Weights]
"""Returns an expert's weights in host memory."""


class SwappedEnsemble(Ensemble):
    """Residency ``current`` and ``disk``: one network on the device, refilled as σ decreases."""

    def __init__(
        self,
        network: Denoiser,
        intervals: Mapping[str, Interval],
        load: Mapping[str, Load],
        noise: NoiseDistribution,
        *,
        on_route: Callable[[RouteEvent], None] | None = None,
    ) -> None:
        """
        Args:
            network: a network of the experts' architecture, on the device.
            intervals: expert → its interval of p(σ).
            load: expert → function that returns its weights in host memory. With ``current`` they
                are there already; with ``disk`` a background thread reads the file while the
                expert before it runs.
        """
        experts = [Expert(name, interval, network) for name, interval in intervals.items()]
        super().__init__(experts, noise, on_route=on_route)
        if missing := sorted(set(intervals) - set(load)):
            raise ValueError(f"no loader for the weights of {', '.join(missing)}")
        self.network, self.load = network, dict(load)
        self.loaded: str | None = None
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="expert")
        self._prefetched: tuple[str, Future[Weights]] | None = None

    def take_from(self, load: Mapping[str, Load]) -> None:
        """Load the weights by other functions from now on; what is loaded is dropped."""
        if missing := sorted(set(self.load) - set(load)):
            raise ValueError(f"no loader for the weights of {', '.join(missing)}")
        self.load, self.loaded, self._prefetched = dict(load), None, None

    def resident_denoiser(self, expert: Expert) -> Denoiser:
        if self.loaded != expert.name:
            self._copy_in(self._weights_of(expert.name), expert.name)
            self._prefetch_below(expert)
        return self.network

    def _weights_of(self, name: str) -> Weights:
        prefetched, self._prefetched = self._prefetched, None
        if prefetched and prefetched[0] == name:
            return prefetched[1].result()
        return self.load[name]()

    def _prefetch_below(self, expert: Expert) -> None:
        """Start reading the expert of the next lower interval, which a sampler needs next."""
        below = self.experts.index(expert) - 1
        if below >= 0:
            name = self.experts[below].name
            self._prefetched = (name, self._reader.submit(self.load[name]))

    @torch.no_grad()
    def _copy_in(self, weights: Weights, name: str) -> None:
        mine = self.network.state_dict()
        wrong = sorted(set(mine) ^ set(weights)) or [
            k for k, v in mine.items() if v.shape != weights[k].shape
        ]
        if wrong:
            raise ValueError(
                f"expert {name} differs from the others in architecture ({wrong[0]}); "
                "such an ensemble needs residency `all`"
            )
        self.loaded = None  # a copy that fails half-way leaves no expert loaded
        for key, value in mine.items():
            value.copy_(weights[key], non_blocking=True)
        self.loaded = name
