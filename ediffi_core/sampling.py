"""Solvers of ``dx/dσ = (x − D(x; σ))/σ``: pure functions with one signature.

``solver(denoise, x, sigmas, callback=None) -> x`` where ``denoise(x, σ)`` takes a float64 scalar,
``sigmas`` falls to a final 0 (:func:`ediffi_core.noise.edm_grid`), and x starts at ``σ_max ε``.
The callback gets ``{"step", "sigma", "x", "denoised"}`` after every evaluation's step. The last
step, to σ = 0, is of first order everywhere: it lands on the denoised picture.
"""

from __future__ import annotations

from collections.abc import Callable
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


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, callback: Callback | None = None) -> Tensor:
    """First order; one evaluation a step."""
    return deis(denoise, x, sigmas, callback, order=1)


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, callback: Callback | None = None) -> Tensor:
    """EDM's second-order solver (algorithm 1, no churn): two evaluations a step but the last."""
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        slope = (x - denoised) / float(sigma)
        width = float(following - sigma)
        x_next = x + slope * width
        if following > 0:
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
) -> Tensor:
    """ρAB-DEIS in EDM's coordinates: Adams–Bashforth on ``ε = (x − D)/σ``, one evaluation a step.

    The polynomial through the last ``order`` values of ε is integrated exactly over each step; the
    order ramps up from 1. History is kept across a change of expert: both follow the same ODE.
    """
    if not 1 <= order <= 3:
        raise ValueError(f"DEIS has orders 1 to 3, got {order}")
    history: list[Tensor] = []
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        if following == 0:
            x = denoised
        else:
            history = [(x - denoised) / float(sigma), *history[: order - 1]]
            nodes = sigmas[step - len(history) + 1 : step + 1].flip(0).double()
            weights = adams_bashforth(nodes, float(sigma), float(following))
            for weight, slope in zip(weights.tolist(), history, strict=True):
                x = x + weight * slope
        if callback:
            callback({"step": step, "sigma": float(sigma), "x": x, "denoised": denoised})
    return x


# Gauss–Legendre with two points integrates the cubic exactly, and DEIS needs degree 2 at most.
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


SOLVERS: dict[str, Solver] = {
    "euler": euler,
    "heun": heun,
    "deis1": partial(deis, order=1),
    "deis2": partial(deis, order=2),
    "deis3": partial(deis, order=3),
}
