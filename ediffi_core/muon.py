"""Muon: momentum whose updates of weight matrices are orthogonalised.

For networks as small as the demo's it reaches a loss with about a third of the images that AdamW
needs (``tests/benchmarks/RESULTS.md``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from ediffi_core.sharding import full_tensor, sharded_like

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration, chosen for its slope at zero: singular values end between about 0.7 and
1.2 (Jordan et al., 2024; also torch.optim.Muon's)."""

STEPS = 5
"""Iterations of an update."""

EPS = 1e-7
"""The smallest norm that a matrix is divided by."""

TOGETHER = 1 << 24
"""Weights of one batch of products at most, which bounds the memory of an update."""


class Muon(torch.optim.Optimizer):
    """Muon for weights of two and more dimensions; kernels count as matrices [c_out, c_in k k].

    ``B ← μ B + (1 − μ) g``; ``U = orthogonalized((1 − μ) g + μ B)``;
    ``W ← (1 − η λ) W − 0.2 √max(rows, columns) η U``. With that factor an update has the root mean
    square of AdamW's, so both take the same learning rate and weight decay (Moonlight,
    arXiv:2502.16982, section 2.2).

    :class:`torch.optim.Muon` takes matrices alone and computes in bfloat16, which processors
    without such instructions emulate; on matrices, both give the same updates but for rounding.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
    ) -> None:
        """
        Args:
            params: of at least two dimensions, on one device; sharded ones (FSDP) are gathered for
                the iteration, those of one shape together.
            momentum: μ.

        Raises:
            ValueError: A parameter has fewer than two dimensions.
        """
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim < 2:
                    raise ValueError(
                        f"Muon orthogonalises matrices, got a parameter of shape "
                        f"{list(parameter.shape)}; AdamW is for those"
                    )
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient; returns the closure's value, if any."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            given = [p for p in group["params"] if p.grad is not None]
            for some in alike(given):
                self._update(some, group)
        return loss

    def _update(self, params: list[Tensor], group: Mapping[str, Any]) -> None:
        """Update parameters of one shape: their matrices are one batch of products."""
        rate, momentum = group["lr"], group["momentum"]
        grads = [cast(Tensor, p.grad) for p in params]
        averages = [self.state[p]["momentum"] for p in params]
        torch._foreach_lerp_(averages, grads, 1 - momentum)
        ahead = torch._foreach_lerp(grads, averages, momentum)
        torch._foreach_mul_(params, 1 - rate * group["weight_decay"])
        full = torch.stack([full_tensor(t).flatten(1) for t in ahead])
        factor = -0.2 * rate * math.sqrt(max(full.shape[1:]))
        for parameter, update in zip(params, orthogonalized(full), strict=True):
            shaped = update.reshape(parameter.shape)
            parameter.add_(sharded_like(parameter, shaped), alpha=factor)


def alike(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters of equal shape together, at most :data:`TOGETHER` weights at a time."""
    found: dict[torch.Size, list[Tensor]] = {}
    for parameter in params:
        found.setdefault(parameter.shape, []).append(parameter)
    for shape, same in found.items():
        count = max(1, TOGETHER // max(1, shape.numel()))
        for start in range(0, len(same), count):
            yield same[start : start + count]


def orthogonalized(x: Tensor, steps: int = STEPS) -> Tensor:
    """Matrices with the singular vectors of the given ones and singular values near 1.

    A quintic Newton–Schulz iteration. On GPUs it computes in bfloat16, as it was designed to. Off
    them it computes in x's precision, and a matrix much wider than high iterates its Gram matrix
    ``G = X Xᵀ`` instead: ``X ← P X`` with ``P = aI + bG + cG²`` multiplies both by polynomials of
    one matrix, so that the wide products are two instead of two for each iteration.

    Args:
        x: [N, rows, columns], float32 or float64.

    Returns:
        x's shape and dtype.
    """
    if x.shape[1] > x.shape[2]:
        return orthogonalized(x.mT, steps).mT
    dtype, rows, columns = x.dtype, *x.shape[1:]
    x = x / x.flatten(1).norm(dim=1).clamp(min=EPS)[:, None, None]
    on_gpu = x.device.type == "cuda"
    if on_gpu or columns < 2 * rows:
        x = x.bfloat16() if on_gpu else x
        for _ in range(steps):
            x = torch.bmm(_quintic(torch.bmm(x, x.mT)), x)
        return x.to(dtype)
    gram = torch.bmm(x, x.mT)
    product = polynomial = _quintic(gram)
    for _ in range(steps - 1):
        gram = torch.bmm(torch.bmm(polynomial, gram), polynomial)
        polynomial = _quintic(gram)
        product = torch.bmm(polynomial, product)
    return torch.bmm(product, x)


def _quintic(gram: Tensor) -> Tensor:
    """``aI + bG + cG²`` of Gram matrices [N, rows, rows]."""
    a, b, c = COEFFICIENTS
    out = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    out.diagonal(dim1=1, dim2=2).add_(a)
    return out
