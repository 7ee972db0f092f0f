"""The length of a power average of the weights (EDM2). Does not import torch."""

from __future__ import annotations


def gamma_of(length: float) -> float:
    """The exponent γ of a power average: ``σ_rel² = (γ+1) / ((γ+2)² (γ+3))`` (EDM2, section 3.1).

    Args:
        length: σ_rel, the average's width as a share of the training so far.

    Raises:
        ValueError: The length lies outside (0, 0.288).
    """
    if not 0 < length < 12**-0.5:  # γ = 0, the plain mean, is the longest
        raise ValueError(f"a power average's length must lie in (0, 0.288), got {length}")
    import numpy as np

    inverse = length**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(roots.real.max())
