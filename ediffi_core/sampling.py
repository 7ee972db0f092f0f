"""Solvers of the ODE ``dx/dσ = (x − D(x; σ))/σ``: pure functions with one signature.

``solver(denoise, x, sigmas, callback=None) -> x``: ``denoise(x, σ)`` takes a float64 scalar,
``sigmas`` decreases to a final 0 (:func:`ediffi_core.noise.edm_grid`), and x starts at ``σ_max ε``.

Noise levels stay on the CPU, wherever x is, so that no step waits for a device; a grid on a device
is copied once. The callback gets ``{"step", "sigma", "x", "denoised"}`` after every step. The last
step, to σ = 0, is of first order in every solver: it returns the denoised image.
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
    """The signature of all solvers."""

    def __call__(
        self, denoise: Denoise, x: Tensor, sigmas: Tensor, callback: Callback | None = None
    ) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Churn:
    """Fresh noise before a step, which corrects errors of earlier steps (EDM, algorithm 2).

    Only single-step solvers take it: it would invalidate the history of a multistep solver.
    """

    amount: float
    """S_churn of EDM, spread over all steps; 0 adds no noise."""

    noise: Callable[[int], Tensor]
    """Step → standard normal noise of x's shape, on any device. A pure function makes sampling
    reproducible, and noise from the CPU makes it the same on every device."""

    sigma_min: float = 0.05
    """S_tmin: no noise is added below."""

    sigma_max: float = 50.0
    """S_tmax: no noise is added above."""

    scale: float = 1.003
    """S_noise: factor on the standard deviation of the added noise."""

    def apply(self, x: Tensor, sigma: Tensor, step: int, steps: int) -> tuple[Tensor, Tensor]:
        """x with added noise, and its new noise level."""
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
    """Euler's method: first order, one evaluation per step."""
    return _single_step(denoise, x, sigmas, callback, churn, second_order=False)


def heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    callback: Callback | None = None,
    *,
    churn: Churn | None = None,
) -> Tensor:
    """Heun's method (EDM, algorithm 2): second order, two evaluations per step except the last."""
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
    """ρAB-DEIS (arXiv:2204.13902) in EDM's coordinates: one evaluation per step.

    Adams–Bashforth on ``ε = (x − D)/σ``: the polynomial in σ through the last values of ε is
    integrated exactly over each step.

    Args:
        order: degree of the polynomial, 1 to 3. It uses ``order + 1`` values of ε and ramps up from
            degree 0, which is Euler's method.
        restart_at: noise levels at which the history is dropped, such as the edges of an ensemble.
            By default it is kept, because neighbouring experts follow nearly the same ODE.
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
            if step and _crosses(sigmas[step - 1], sigma, restart_at):
                history = []
            history = [(x - denoised) / float(sigma), *history[:order]]
            nodes = sigmas[step - len(history) + 1 : step + 1].flip(0).double()
            weights = adams_bashforth(nodes, float(sigma), float(following))
            for weight, slope in zip(weights.tolist(), history, strict=True):
                x = x + weight * slope
        if callback:
            callback({"step": step, "sigma": float(sigma), "x": x, "denoised": denoised})
    return x


def _crosses(before: Tensor, sigma: Tensor, edges: Sequence[float]) -> bool:
    """Whether a step from one noise level to the next, lower one passes below an edge."""
    return any(sigma < edge <= before for edge in edges)


# Two-point Gauss–Legendre integrates cubics exactly, and DEIS needs degree 3 at most.
_GAUSS = torch.tensor([-1.0, 1.0], dtype=torch.float64) / 3**0.5


def adams_bashforth(nodes: Tensor, start: float, stop: float) -> Tensor:
    """Weights ``∫ l_j(σ) dσ`` from start to stop of the nodes' Lagrange polynomials. [k] → [k]"""
    half = (stop - start) / 2
    at = (start + stop) / 2 + half * _GAUSS
    weights = []
    for j, node in enumerate(nodes):
        others = torch.cat([nodes[:j], nodes[j + 1 :]])
        lagrange = ((at[:, None] - others) / (node - others)).prod(dim=1)
        weights.append(half * lagrange.sum())
    return torch.stack(weights)


def dpm_pp_2m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    callback: Callback | None = None,
    *,
    restart_at: Sequence[float] = (),
) -> Tensor:
    """DPM-Solver++(2M) (arXiv:2211.01095, algorithm 2): second-order multistep on D in ``ln σ``.

    Args:
        restart_at: as in :func:`deis`.
    """
    before: Tensor | None = None
    sigmas = sigmas.cpu()
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        if following == 0:
            x = denoised
        else:
            if step and _crosses(sigmas[step - 1], sigma, restart_at):
                before = None
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
"""Name → solver. ``deis3`` is eDiff-I's: ρAB-DEIS with a cubic through four values."""
