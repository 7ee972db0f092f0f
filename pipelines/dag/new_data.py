"""Goes on from the champion when there is new data, or says why it is not worth the while."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.dag.champion import Champion
from pipelines.dag.plan import Plan
from pipelines.store.artifacts import Store
from pipelines.store.dataset import Version


def why_not(plan: Plan, store: Store, sources: Mapping[str, Any], champion: Champion) -> str:
    """In words, why a retraining would find nothing new; nothing if it might."""
    before = champion.data("train")
    if plan.verdicts["embed/train"].fingerprint == before.fingerprint:
        return "the data is what the champion was trained on"
    if plan.verdicts[f"promote/{plan.spec.name}"].cached:
        return "this data has been tried on the champion before"
    if "train" not in sources:  # made by a node: other settings, other data
        return ""
    seen = set(Version.open(store, before.folder).table["source_identity"].to_pylist())
    new = sum(shard.identity not in seen for shard in sources["train"]["listed"])
    least = plan.spec.retraining.new_shards
    if new < least:
        return f"{new:,} files are new, and `retraining.new_shards` asks for {least:,}"
    return ""
