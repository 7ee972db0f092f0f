"""What changed between two ensembles of a model: data, encoders, settings, experts, measures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from pipelines.dag.differences import difference
from pipelines.formatting import AUXILIARY_SUFFIXES, align_columns
from pipelines.models.champions import MANIFEST as ENSEMBLE
from pipelines.models.champions import Entry
from pipelines.store.artifacts import MANIFEST, Store

PER_RUN = ("stream",)
"""Settings that name a run and its random numbers, and differ in every retraining."""


def facts(store: Store, folder: str) -> dict[str, Any]:
    """What determines an ensemble, as nested settings: data, encoders, stages and experts.

    What the store no longer has is left out.

    Args:
        folder: Folder of the ensemble's promote node in the store.

    Raises:
        ValueError: The ensemble itself is gone.
    """
    manifest = store.read_json(f"{folder}/{ENSEMBLE}")
    if manifest is None:
        raise ValueError(f"{store.full(folder)} has no {ENSEMBLE}; the ensemble was removed")
    data = {}
    for split, of in manifest.get("data", {}).items():
        made = store.read_json(f"{of['folder']}/{MANIFEST}") or {}
        rows = made.get("metrics", {}).get("rows")
        data[split] = {"version": of["fingerprint"], **({"rows": rows} if rows else {})}
    stages = {
        stage["name"]: {k: v for k, v in stage.items() if k not in ("name", "experts")}
        for stage in manifest["stages"]
    }
    for place, weights in manifest["weights"].items():
        stage, _, slot = place.rpartition("/")
        made = store.read_json(f"{PurePosixPath(weights['path']).parent}/{MANIFEST}") or {}
        settings = {k: v for k, v in made.get("settings", {}).items() if k not in PER_RUN}
        known = {"weights": weights["sha256"][:16]}
        stages[stage].setdefault("experts", {})[slot] = {**settings, **known}
    return {
        "data": data,
        "encoders": manifest.get("trained_with") or {},
        "stages": stages,
    }


def compare(store: Store, old: Entry, new: Entry) -> dict[str, Any]:
    """Differences of two ensembles.

    Returns:
        ``changed``: one ``key: old → new`` for each setting; ``metrics``: measure → its ``old`` and
        ``new`` value and their ``difference``, None where one has no value.
    """
    before, after = (
        (store.read_json(f"{e.folder}/{MANIFEST}") or {}).get("metrics", {}) for e in (old, new)
    )
    return {
        "old": old.fingerprint,
        "new": new.fingerprint,
        "changed": difference(facts(store, old.folder), facts(store, new.folder)),
        "metrics": {
            key: {
                "old": before.get(key),
                "new": after.get(key),
                "difference": after[key] - before[key] if key in before and key in after else None,
            }
            for key in {**before, **after}
        },
    }


def text(found: Mapping[str, Any]) -> str:
    """The comparison for the terminal, without control measurements; ± is half an interval."""
    changed = [f"  {line}" for line in found["changed"]]
    rows = [("measure", "old", "new", "new − old")]
    for key, of in found["metrics"].items():
        if not key.endswith(AUXILIARY_SUFFIXES) and "/" not in key:
            half = found["metrics"].get(f"{key}_ci95", {})
            values = (_number(of[side], half.get(side)) for side in ("old", "new"))
            rows.append((key, *values, _number(of["difference"], sign="+")))
    return "\n".join(
        [
            f"{len(changed)} settings differ" if changed else "no setting differs",
            *changed,
            "",
            *(f"  {line}" for line in align_columns(rows, right=(1, 2, 3))),
        ]
    )


def _number(value: float | None, half: float | None = None, sign: str = "") -> str:
    if value is None:
        return "–"
    return f"{value:{sign}.4g}" + (f" ±{half:.2g}" if half is not None else "")
