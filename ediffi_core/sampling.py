"""Solvers of ``dx/dσ = (x − D(x; σ))/σ``: pure functions with one signature.

``solver(denoise, x, sigmas, callback=None) -> x`` where ``denoise(x, σ)`` takes a float64 scalar,
``sigmas`` falls to a final 0 (:func:`ediffi_core.noise.edm_grid`), and x starts at ``σ_max ε``.
The noise levels are numbers to the host and stay on the CPU, wherever x is: no step reads anything
back from a device. Those of a grid that is on one are read once.
The callback gets ``{"step", "sigma", "x", "denoised"}`` after every evaluation's step. The last
step, to σ = 0, is of first order everywhere: it lands on the denoised picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
Callback = Callable[[dict[str, Any]], None]


class Solver(Protocol):
    def __call__(
        self, denoise: Denoise, x: Tensor, sigmas: Tensor, callback: Callback | None = None
    ) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Churn:
    """Fresh noise before a step, which corrects errors of the last ones (EDM, algorithm 2).

    The single-step solvers take it. The multistep ones do not: it would make their history that
    of another path.
    """

    amount: float
    """EDM's S_churn, spread over all steps; 0 adds nothing."""

    noise: Callable[[int], Tensor]
    """Step → standard normal noise of x's shape, from any device; a pure function keeps sampling
    reproducible, and one that draws on the CPU makes it the same on every device."""

    sigma_min: float = 0.05
    sigma_max: float = 50.0
    scale: float = 1.003
    """EDM's S_noise."""

    def apply(self, x: Tensor, sigma: Tensor, step: int, steps: int) -> tuple[Tensor, Tensor]:
        """→ x with more noise, and its level."""
        if self.amount <= 0 or not self.sigma_min <= float(sigma) <= self.sigma_max:
            return x, sigma
        raised = sigma * (1 + min(self.amount / steps, math.sqrt(2) - 1))
        extra = float((raised**2 - sigma**2).sqrt()) * self.scale
        return x + extra * self.noise(step).to(x), raised


def euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    callback: Callback | None = None,
    *,
    churn: Churn | None = None,
) -> Tensor:
    """First order; one evaluation a step."""
    return _single_step(denoise, x, sigmas, callback, churn, second_order=False)


def heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    callback: Callback | None = None,
    *,
    churn: Churn | None = None,
) -> Tensor:
    """EDM's second-order solver (algorithm 2): two evaluations a step but the last."""
    return _single_step(denoise, x, sigmas, callback, churn, second_order=True)


def _single_step(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    callback: Callback | None,
    churn: Churn | None,
    *,
    second_order: bool,
) -> Tensor:
    sigmas = sigmas.cpu()
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        if churn:
            x, sigma = churn.apply(x, sigma, step, len(sigmas) - 1)
        denoised = denoise(x, sigma)
        if following == 0:
            x = denoised
        else:
            slope = (x - denoised) / float(sigma)
            width = float(following - sigma)
            x_next = x + slope * width
            if second_order:
                slope2 = (x_next - denoise(x_next, following)) / float(following)
                x_next = x + 0.5 * width * (slope + slope2)
            x = x_next
        if callback:
            callback({"step": step, "sigma": float(sigma), "x": x, "denoised": denoised})
    return x


def deis(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    callback: Callback | None = None,
    *,
    order: int = 3,
    restart_at: Sequence[float] = (),
) -> Tensor:
    """ρAB-DEIS in EDM's coordinates: Adams–Bashforth on ``ε = (x − D)/σ``, one evaluation a step.

    The polynomial through the last values of ε is integrated exactly over each step.

    Args:
        order: degree of the polynomial, so that ``order + 1`` values of ε are used, as DEIS counts;
            it ramps up from 0, Euler's method.
        restart_at: noise levels on whose far side the history is forgotten, for instance the edges
            of an ensemble. By default it is kept: neighbouring experts follow nearly the same ODE.
    """
    if not 1 <= order <= 3:
        raise ValueError(f"DEIS has orders 1 to 3, got {order}")
    history: list[Tensor] = []
    sigmas = sigmas.cpu()
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        if following == 0:
            x = denoised
        else:
            if step and any(sigma < edge <= sigmas[step - 1] for edge in restart_at):
                history = []
            history = [(x - denoised) / float(sigma), *history[:order]]
            nodes = sigmas[step - len(history) + 1 : step + 1].flip(0).double()
            weights = adams_bashforth(nodes, float(sigma), float(following))
            for weight, slope in zip(weights.tolist(), history, strict=True):
                x = x + weight * slope
        if callback:
            callback({"step": step, "sigma": float(sigma), "x": x, "denoised": denoised})
    return x


# Gauss–Legendre with two points integrates the cubic exactly, and DEIS needs degree 3 at most.
_GAUSS = torch.tensor([-1.0, 1.0], dtype=torch.float64) / 3**0.5


def adams_bashforth(nodes: Tensor, start: float, stop: float) -> Tensor:
    """``∫ l_j(σ) dσ`` from start to stop for the Lagrange polynomials of the nodes. [k] → [k]"""
    half = (stop - start) / 2
    at = (start + stop) / 2 + half * _GAUSS
    weights = []
    for j, node in enumerate(nodes):
        others = torch.cat([nodes[:j], nodes[j + 1 :]])
        lagrange = ((at[:, None] - others) / (node - others)).prod(dim=1)
        weights.append(half * lagrange.sum())
    return torch.stack(weights)


def dpm_pp_2m(
    denoise: Denoise, x: Tensor, sigmas: Tensor, callback: Callback | None = None
) -> Tensor:
    """DPM-Solver++(2M): second-order multistep on D itself, in ``ln σ``; one evaluation a step."""
    before: Tensor | None = None
    sigmas = sigmas.cpu()
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        if following == 0:
            x = denoised
        else:
            h = float(torch.log(sigma / following))
            ahead = denoised
            if before is not None:
                r = float(torch.log(sigmas[step - 1] / sigma)) / h
                ahead = denoised + (denoised - before) / (2 * r)
            x = float(following / sigma) * x - math.expm1(-h) * ahead
        before = denoised
        if callback:
            callback({"step": step, "sigma": float(sigma), "x": x, "denoised": denoised})
    return x


SOLVERS: dict[str, Solver] = {
    "euler": euler,
    "heun": heun,
    "deis1": partial(deis, order=1),
    "deis2": partial(deis, order=2),
    "deis3": partial(deis, order=3),
    "dpm++2m": dpm_pp_2m,
}
"""Name → solver. ``deis3`` is the paper's: ρAB-DEIS with a cubic through four values."""
