"""Metrics that a training node logs, and the check for bad losses."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections import deque
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ediffi_core.noise import Interval, NoiseDistribution
from ediffi_core.token_groups import all_rows_at_once
from pipelines.training.parallel import Communicator
from pipelines.training.step import Outcome

MEDIAN_WINDOW = 64
"""Number of past losses whose median a leap is compared with."""


class BadLoss(ValueError):
    """A batch whose loss or gradient must not be trained on."""

    def __init__(self, position: int, why: str) -> None:
        super().__init__(why)
        self.position, self.why = position, why


class Meters:
    """Collects steps, checks their losses and averages them. Its methods are collective calls."""

    def __init__(
        self,
        comm: Communicator,
        interval: Interval,
        noise: NoiseDistribution,
        *,
        bins: int,
        leap: float | None,
    ) -> None:
        """
        Args:
            interval: the expert's share of p(σ), which the loss is binned over.
            bins: number of equally likely noise levels to log the loss of.
            leap: a loss above this many times the recent median is bad; None for no limit.
        """
        self.comm, self.interval, self.noise = comm, interval, noise
        self.bins, self.leap = bins, leap
        self.losses: deque[float] = deque(maxlen=MEDIAN_WINDOW)
        """Mean losses of the last checked batches; part of the checkpoint."""
        self.restart()

    def restart(self) -> None:
        """Drop the steps since the last summary and restart the clock."""
        self.steps: list[tuple[int, Outcome]] = []
        self.checked: list[float] = []
        self.waited_s, self.began = 0.0, time.monotonic()

    def add(self, position: int, outcome: Outcome, waited_s: float) -> None:
        self.steps.append((position, outcome))
        self.waited_s += waited_s

    def check(self, batch: int) -> None:
        """Check the steps since the last check; :class:`BadLoss` for the first bad one.

        Reading a loss waits for the GPU, so this does not run at every step. It always runs before
        a checkpoint is saved.
        """
        new = self.steps[len(self.checked) :]
        if not new:
            return
        sums = self.comm.all_reduce_sum(torch.stack([o.loss.double().sum() for _, o in new]))
        norms = torch.stack([o.grad_norm.double() for _, o in new]).tolist()
        for (position, _), loss, norm in zip(new, (sums / batch).tolist(), norms, strict=True):
            if why := self._why_bad(loss, norm):
                raise BadLoss(position, why)
            self.losses.append(loss)
            self.checked.append(loss)

    def _why_bad(self, loss: float, norm: float) -> str | None:
        if not abs(loss) < float("inf"):
            return f"the loss is {loss}"
        if not norm < float("inf"):
            return f"the gradient's norm is {norm}"
        if self.leap and len(self.losses) == MEDIAN_WINDOW:
            usual = statistics.median(self.losses)
            if loss > self.leap * usual:
                return f"the loss leapt to {loss:.4g}, {loss / usual:.3g} times its median before"
        return None

    def summary(self, batch: int) -> dict[str, float]:
        """Metrics of the steps since the last summary; restarts the meters."""
        elapsed = max(time.monotonic() - self.began, 1e-9)
        norms = torch.stack([o.grad_norm.float() for _, o in self.steps])
        worst = self.comm.all_reduce_max(
            torch.tensor([self.waited_s / elapsed, memory_bytes(self.comm.device)])
        ).tolist()
        found = {
            "loss": statistics.fmean(self.checked),
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
        """The mean loss in each of ``bins`` equally likely parts of the expert's interval.

        Draws outside the interval, which an expert may train on too, are in no part.
        """
        sigma = torch.cat([o.sigma for _, o in self.steps]).cpu()
        loss = torch.cat([o.loss for _, o in self.steps]).double().cpu()
        sigma_lo, sigma_hi = self.interval.bounds(self.noise)
        inside = (sigma >= sigma_lo) & (sigma < sigma_hi)
        sigma, loss = sigma[inside], loss[inside]
        low, high = self.interval.q_lo, self.interval.q_hi
        which = ((self.noise.quantile(sigma) - low) / (high - low) * self.bins).long()
        which = which.clamp(0, self.bins - 1)
        sums, counts = torch.zeros(2, self.bins, dtype=torch.float64)
        sums.index_add_(0, which, loss)
        counts.index_add_(0, which, torch.ones_like(loss))
        sums, counts = self.comm.all_reduce_sum(torch.stack([sums, counts]))
        edges = self.noise.sigma(torch.linspace(low, high, self.bins + 1)).tolist()
        return {
            f"loss_bin/sigma_{edges[b]:.3g}_to_{edges[b + 1]:.3g}": float(sums[b] / counts[b])
            for b in range(self.bins)
            if counts[b]
        }


def memory_bytes(device: torch.device) -> int:
    """Peak memory of this process in bytes: GPU memory if it has a GPU, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def flops_per_image(model: torch.nn.Module, x: Tensor, sigma: Tensor, cond: Any) -> float:
    """FLOPs of a training step: the forward pass, and twice that for the backward pass.

    Recomputed activations are not counted, as in MFU.

    Args:
        x, sigma, cond: inputs of one image.
    """
    return 3.0 * forward_flops(model, x, sigma, cond)


def forward_flops(model: torch.nn.Module, x: Tensor, sigma: Tensor, cond: Any) -> float:
    """FLOPs of one evaluation of a denoiser, padding included; arguments as of
    :func:`flops_per_image`."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), all_rows_at_once(), FlopCounterMode(display=False) as counter:
        model(x, sigma, cond)
    return float(counter.get_total_flops())


@cache
def matmul_flops_per_s(device: torch.device, precision: str) -> float:
    """Measured FLOP/s of a large matrix product on this device: the reference for MFU.

    Measured once per process: a warm worker trains many nodes.
    """
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
