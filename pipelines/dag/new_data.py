"""Decide whether there is enough new data to retrain the champion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.dag.champion import Champion
from pipelines.dag.plan import Plan
from pipelines.data.formats.shard import SourceShard
from pipelines.models import champions
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
    if is_settled(plan, store):
        return "the champion has already been retrained on this data"
    files = new_shards(store, sources, champion)
    least = plan.spec.retraining.new_shards
    if files is not None and len(files) < least:
        return f"{len(files):,} files are new, and `retraining.new_shards` asks for {least:,}"
    return ""


def new_shards(
    store: Store, sources: Mapping[str, Any], champion: Champion
) -> list[SourceShard] | None:
    """Source files that the champion was not trained on.

    None if a node makes the data: then its settings changed, and so did all of it.
    """
    if "train" not in sources:
        return None
    seen = Version.open(store, champion.data("train").folder).table["source_identity"]
    known = set(seen.to_pylist())
    return [shard for shard in sources["train"]["listed"] if shard.identity not in known]


def is_settled(plan: Plan, store: Store) -> bool:
    """Whether nothing is left to do: every node is done, and the result was offered and decided on.

    A run that was cut off after its promote node has neither been compared with the champion nor
    offered as candidate; the same command goes on with it.
    """
    name = plan.spec.name
    if not all(verdict.cached for verdict in plan.verdicts.values()):
        return False
    mine, book = plan.verdicts[f"promote/{name}"].fingerprint, champions.read(store, name)
    if mine not in book.versions:
        return False
    gate = plan.verdicts.get(f"gate/{name}")
    wins = gate is not None and gate.manifest is not None and gate.manifest["info"]["wins"]
    return not wins or mine in book.promoted
