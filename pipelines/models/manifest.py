"""The manifest of a trained ensemble: ``ensemble.json``, which a promote node writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.models.champions import MANIFEST
from pipelines.spec.sampling import Sampling


def read_manifest(file: str | Path) -> dict[str, Any]:
    """Read an ``ensemble.json``; ValueError if there is none, or a file of another kind."""
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"there is no ensemble at {file}; give the path of its {MANIFEST}")
    try:
        found = json.loads(path.read_text())
        missing = {"model", "store", "stages", "weights", "encoders"} - set(found)
    except (UnicodeDecodeError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is not an ensemble manifest ({error!r})") from error
    if missing:
        raise ValueError(f"{file} is not an ensemble manifest (it has no {min(missing)})")
    return dict(found)


def own_sampling(stages: Sequence[Mapping[str, Any]]) -> dict[str, Sampling]:
    """Stage → the ensemble's own sampling settings."""
    return {s["name"]: Sampling.from_settings(s["sampling"]) for s in stages}


def check_sampling(stages: Sequence[Mapping[str, Any]], sampling: Mapping[str, Sampling]) -> None:
    """Check settings against the stages of a manifest, before any weights are loaded.

    Warns:
        SamplingWarning: A setting has no effect.

    Raises:
        ValueError: Guidance is set for an expert that the ensemble has not.
    """
    for stage in stages:
        settings, experts = sampling[stage["name"]], stage["experts"]
        if unknown := sorted(set(settings.guidance.experts) - set(experts)):
            raise ValueError(
                f"guidance for {', '.join(unknown)}, but the ensemble has {', '.join(experts)}"
            )
        settings.warn_ineffective(
            stage["name"], resolution=stage["resolution"], experts=list(experts)
        )
