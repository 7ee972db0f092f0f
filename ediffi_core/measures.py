"""Measures of sets of pictures by name, on their features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ediffi_core import distances, manifolds
from ediffi_core.distances import Measured
from ediffi_core.features import Features


def measure(
    names: Sequence[str],
    made: Features,
    real: Features,
    *,
    training: Features | None = None,
    kid_subsets: int = distances.KID_SUBSETS,
    kid_subset_size: int = distances.KID_SUBSET_SIZE,
    precision_k: int = manifolds.PRECISION_K,
    density_k: int = manifolds.DENSITY_K,
    seed: int = 0,
) -> dict[str, Measured]:
    """Compute measures of generated pictures.

    Args:
        names: of :data:`MEASURES`.
        made: features of the generated pictures.
        real: features of real pictures that the model was not trained on.
        training: features of the pictures that it was trained on; only ``neighbours`` reads them.
        kid_subsets, kid_subset_size: as of :func:`ediffi_core.distances.kid`.
        precision_k: ``k`` of :func:`ediffi_core.manifolds.precision_recall`.
        density_k: ``k`` of :func:`ediffi_core.manifolds.density_coverage`.
        seed: of the groups of ``fid``'s interval.

    Returns:
        Results by name: ``fid``, ``kid``, ``cmmd``, ``precision``, ``recall``, ``density``,
        ``coverage``, ``memorised``, ``authenticity``.

    Raises:
        ValueError: A measure is unknown, or needs more pictures, or ``training``.
    """
    size = {"subsets": kid_subsets, "subset_size": kid_subset_size}
    known: dict[str, Callable[[], dict[str, Measured]]] = {
        "fid": lambda: {"fid": distances.fid(made, real, seed=seed)},
        "kid": lambda: {"kid": distances.kid(made, real, **size)},
        "cmmd": lambda: {"cmmd": distances.cmmd(made, real)},
        "precision_recall": lambda: manifolds.precision_recall(made, real, k=precision_k),
        "density_coverage": lambda: manifolds.density_coverage(made, real, k=density_k),
        "neighbours": lambda: manifolds.neighbours(made, _given(training)).measured(made),
    }
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"there is no measure {unknown[0]!r}; there are {', '.join(known)}")
    found: dict[str, Measured] = {}
    for name in names:
        found |= known[name]()
    return found


MEASURES = ("fid", "kid", "cmmd", "precision_recall", "density_coverage", "neighbours")
"""Names for :func:`measure`."""


def _given(training: Features | None) -> Features:
    if training is None:
        raise ValueError(
            "neighbours compares with the training pictures, whose features are not given; remove "
            "it from `evaluate.measures`"
        )
    return training
