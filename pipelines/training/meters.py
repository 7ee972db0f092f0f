"""What a training node says of itself every so many images."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections import deque
from typing import Any

import torch
from torch import Tensor

from ediffi_core.noise import Interval, NoiseDistribution
from pipelines.training.parallel import World
from pipelines.training.step import Outcome

BEFORE = 64
"""Losses whose median a leap is measured against."""


class BadLoss(ValueError):
    """A step whose loss or gradient is not to be trained on."""

    def __init__(self, place: int, why: str) -> None:
        super().__init__(why)
        self.place, self.why = place, why


class Meters:
    """Gathers steps, judges them and sums them up; every process must ask at the same step."""

    def __init__(
        self,
        world: World,
        interval: Interval,
        noise: NoiseDistribution,
        *,
        bins: int,
        leap: float | None,
    ) -> None:
        self.world, self.interval, self.noise = world, interval, noise
        self.bins, self.leap = bins, leap
        self.losses: deque[float] = deque(maxlen=BEFORE)
        """The batches' mean losses before those not yet judged: part of the checkpoint."""
        self.restart()

    def restart(self) -> None:
        """Forgets the steps since the last summary, and starts the clock."""
        self.steps: list[tuple[int, Outcome]] = []
        self.judged: list[float] = []
        self.waited_s, self.began = 0.0, time.monotonic()

    def add(self, place: int, outcome: Outcome, waited_s: float) -> None:
        self.steps.append((place, outcome))
        self.waited_s += waited_s

    def judge(self, batch: int) -> None:
        """Looks at the steps since the last look; :class:`BadLoss` for the first bad one.

        Not at every step: looking waits for the GPU. A checkpoint is never saved unlooked.
        """
        new = self.steps[len(self.judged) :]
        if not new:
            return
        sums = self.world.total(torch.stack([o.loss.double().sum() for _, o in new]))
        norms = torch.stack([o.grad_norm.double() for _, o in new]).tolist()
        for (place, _), loss, norm in zip(new, (sums / batch).tolist(), norms, strict=True):
            if why := self._wrong(loss, norm):
                raise BadLoss(place, why)
            self.losses.append(loss)
            self.judged.append(loss)

    def _wrong(self, loss: float, norm: float) -> str | None:
        if not abs(loss) < float("inf"):
            return f"the loss is {loss}"
        if not norm < float("inf"):
            return f"the gradient's norm is {norm}"
        if self.leap and len(self.losses) == BEFORE:
            usual = statistics.median(self.losses)
            if loss > self.leap * usual:
                return f"the loss leapt to {loss:.4g}, {loss / usual:.3g} times its median before"
        return None

    def summary(self, batch: int) -> dict[str, float]:
        """Of the steps since the last one."""
        elapsed = max(time.monotonic() - self.began, 1e-9)
        norms = torch.stack([o.grad_norm.float() for _, o in self.steps])
        worst = self.world.largest(
            torch.tensor([self.waited_s / elapsed, memory_bytes(self.world.device)])
        ).tolist()
        found = {
            "loss": statistics.fmean(self.judged),
            **self._by_noise_level(),
            "grad_norm": float(norms.mean()),
            "grad_norm_max": float(norms.max()),
            "images_per_s": len(self.steps) * batch / elapsed,
            "data_wait": worst[0],
            "memory_gb": worst[1] / 1e9,
        }
        self.restart()
        return found

    def _by_noise_level(self) -> dict[str, float]:
        """The mean loss over each equal share of the expert's own interval."""
        sigma = torch.cat([o.sigma for _, o in self.steps]).cpu()
        loss = torch.cat([o.loss for _, o in self.steps]).double().cpu()
        low, high = self.interval.q_lo, self.interval.q_hi
        which = ((self.noise.quantile(sigma) - low) / (high - low) * self.bins).long()
        which = which.clamp(0, self.bins - 1)
        sums, counts = torch.zeros(2, self.bins, dtype=torch.float64)
        sums.index_add_(0, which, loss)
        counts.index_add_(0, which, torch.ones_like(loss))
        sums, counts = self.world.total(torch.stack([sums, counts]))
        edges = self.noise.sigma(torch.linspace(low, high, self.bins + 1)).tolist()
        return {
            f"loss_bin/sigma_{edges[b]:.3g}_to_{edges[b + 1]:.3g}": float(sums[b] / counts[b])
            for b in range(self.bins)
            if counts[b]
        }


def memory_bytes(device: torch.device) -> int:
    """The most this process has held: on its GPU if it has one, else in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def flops_per_image(model: torch.nn.Module, x: Tensor, sigma: Tensor, cond: Any) -> float:
    """Of a training step: forward, and twice that for backward. Recomputed activations not counted.

    Args:
        x, sigma, cond: of one image.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x, sigma, cond)
    return 3.0 * float(counter.get_total_flops())


def matrix_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a plain matrix product here: what the utilisation is a share of."""
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    if device.type == "cuda" and precision == "float32":
        dtype = torch.float32
    a = torch.ones(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2.0 * side**3 / best
