"""Decide whether there is enough new data to retrain the champion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.dag.champion import Champion
from pipelines.dag.plan import Plan
from pipelines.store.artifacts import Store
from pipelines.store.dataset import Version


def reason_to_skip(plan: Plan, store: Store, sources: Mapping[str, Any], champion: Champion) -> str:
    """Explain why a retraining would be pointless; empty if it should run.

    Args:
        plan: of the retraining.
        sources: identity of the data now (:func:`pipelines.dag.sources.identify_all`).
        champion: the ensemble that would be retrained.
    """
    before = champion.data("train")
    if plan.verdicts["embed/train"].fingerprint == before.fingerprint:
        return "the data is what the champion was trained on"
    if plan.verdicts[f"promote/{plan.spec.name}"].cached:
        return "the champion has already been retrained on this data"
    if "train" not in sources:  # made by a node: its settings changed, so its data did
        return ""
    seen = set(Version.open(store, before.folder).table["source_identity"].to_pylist())
    new = sum(shard.identity not in seen for shard in sources["train"]["listed"])
    least = plan.spec.retraining.new_shards
    if new < least:
        return f"{new:,} files are new, and `retraining.new_shards` asks for {least:,}"
    return ""
