"""Merges models that started from one root by their task vectors (arXiv:2212.04089)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor


def merged(
    root: Mapping[str, Tensor], experts: Iterable[tuple[float, Mapping[str, Tensor]]]
) -> dict[str, Tensor]:
    """``θ_root + Σ w (θ_expert − θ_root)`` (arXiv:2212.04089, section 2; of experts by noise level:
    DeMe, arXiv:2410.06664).

    Args:
        root: weights of the common root by name.
        experts: weight w and weights of each expert, of the root's names and shapes. Read one after
            the other, so that they need not be in memory together.

    Returns:
        Weights of the root's types, summed in float64. What is not floating-point is the root's.

    Raises:
        ValueError: An expert has other weights than the root.
    """
    start = {name: value.double() for name, value in root.items() if value.is_floating_point()}
    total = {name: value.clone() for name, value in start.items()}
    shapes = {name: value.shape for name, value in root.items()}
    for weight, expert in experts:
        if {name: value.shape for name, value in expert.items()} != shapes:
            raise ValueError(
                "an expert and the root differ in names or shapes of their weights; only experts "
                "of one network can be merged"
            )
        for name, value in start.items():
            total[name] += weight * (expert[name].double() - value)
    return {
        name: total[name].to(value.dtype) if name in total else value
        for name, value in root.items()
    }
