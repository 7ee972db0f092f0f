"""Sampling settings as plain values: those of a spec, or of an exported model's JSON."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from ediffi_core.cascade import CascadeStage
from ediffi_core.ensemble import Ensemble
from ediffi_core.guidance import (
    Scale,
    Threshold,
    dynamic_threshold,
    on_interval,
    per_expert,
    static_threshold,
)
from ediffi_core.sampling import Churn

DEFAULTS: dict[str, Any] = {
    "steps": 25,
    "solver": "deis3",
    "guidance": 0.0,
    "threshold": "none",
    "percentile": 0.995,
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "rho": 7.0,
    "churn": None,
    "history": "keep",
    "tile": None,
    "overlap": 32,
    "precision": "float32",
}
"""Every sampling setting of a stage, with its default."""


def with_settings(stage: CascadeStage, settings: Mapping[str, Any]) -> CascadeStage:
    """The stage with these sampling settings, whatever it had before.

    Args:
        settings: as under ``sampling:`` in a spec; those that are missing have their defaults.

    Raises:
        ValueError: A setting is unknown, or names an expert that the ensemble has not.
    """
    _check_known("", settings, DEFAULTS)
    s = {**DEFAULTS, **settings}
    _check_known("churn.", s["churn"] or {}, ("amount", "sigma_min", "sigma_max", "scale"))
    plain = ("steps", "solver", "sigma_min", "sigma_max", "rho", "history", "tile", "overlap")
    return replace(
        stage,
        **{name: s[name] for name in (*plain, "precision")},
        guidance=_scale(stage, s["guidance"]),
        threshold=_threshold(s["threshold"], s["percentile"]),
        churn=partial(_churn, s["churn"]) if s["churn"] else None,
    )


def _check_known(of: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(
            f"there is no sampling setting {of + unknown[0]!r} (there are {', '.join(known)})"
        )


def _churn(settings: Mapping[str, float], noise: Callable[[int], Tensor]) -> Churn:
    return Churn(**settings, noise=noise)


def _scale(stage: CascadeStage, guidance: float | Mapping[str, Any]) -> Scale:
    """Guidance given as a number, or as ``{scale, experts, interval}``."""
    g: Mapping[str, Any] = guidance if isinstance(guidance, Mapping) else {"scale": guidance}
    _check_known("guidance.", g, ("scale", "experts", "interval"))
    scale: Scale = g.get("scale", 0.0)
    if g.get("experts"):
        if not isinstance(stage.denoiser, Ensemble):
            raise ValueError(f"stage {stage.name} has no experts to guide one by one")
        scale = per_expert(stage.denoiser, g["experts"], g.get("scale", 0.0))
    return on_interval(scale, *g["interval"]) if g.get("interval") else scale


def _threshold(kind: str, percentile: float) -> Threshold | None:
    if kind == "dynamic":
        return dynamic_threshold(percentile)
    if kind not in ("none", "static"):
        raise ValueError(f"threshold {kind!r} is unknown; there are none, static and dynamic")
    return static_threshold if kind == "static" else None
