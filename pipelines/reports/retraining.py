"""What ``ediffi retrain`` would do now, as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.dag.new_data import new_shards
from pipelines.dag.plan import Plan, images_to_train
from pipelines.formatting import join_words
from pipelines.models import champions
from pipelines.planning import embedding
from pipelines.reports import plan as plan_view
from pipelines.runs.lease import holder_of, is_driven
from pipelines.store.artifacts import Store

SHOWN_FILES = 3
"""New files that the text names."""


def data(plan: Plan, store: Store, sources: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """What a retraining would do.

    Args:
        plan: of the retraining.
        sources: identity of the data now (:func:`pipelines.dag.sources.identify_all`).
        reason: why it would be skipped; empty if it would run.

    Returns:
        ``starts``: whether it would run; ``why`` not; ``champion``; ``new_files``, None for data
        that a node makes; ``images`` to train, by node; and the ``plan``.
    """
    champion, name = plan.champion, plan.spec.name
    assert champion is not None
    if not reason and is_driven(store, name):
        reason = f"pipeline {name} is being run already ({holder_of(store, name)})"
    files = new_shards(store, sources, champion)
    todo = [v.node for v in plan.verdicts.values() if not v.cached]
    book = champions.read(store, name)
    return {
        "starts": not reason,
        "why": reason,
        "model": name,
        "champion": {
            "version": book.version(champion.fingerprint),
            "fingerprint": champion.fingerprint,
        },
        "new_files": None if files is None else [shard.url for shard in files],
        "images": {node.id: n for node in todo if (n := images_to_train(plan, node))},
        "rule": plan.spec.promotion.settings(),
        "plan": plan_view.data(plan, embedding.estimate(plan, store, sources)),
    }


def text(found: Mapping[str, Any]) -> str:
    """The lines for the terminal; ``found`` is from :func:`data`."""
    champion, files, images = found["champion"], found["new_files"], found["images"]
    of = f"version {champion['version']} ({champion['fingerprint'][: champions.SHORT_LENGTH]})"
    if not found["starts"]:
        return f"would skip the retraining of {found['model']}, {of}: {found['why']}"
    lines = [f"would retrain {found['model']}, {of}", ""]
    if files is not None:
        more = f" and {len(files) - SHOWN_FILES:,} more" if len(files) > SHOWN_FILES else ""
        named = ", ".join(files[:SHOWN_FILES]) + more
        lines.append(f"new files    {len(files):,}{': ' if files else ''}{named}")
    nodes = found["plan"]["nodes"]
    reused = sum(node["cached"] for node in nodes)
    lines.append(f"nodes        {len(nodes) - reused} to run, {reused} reused")
    width = max(map(len, images), default=0)
    for i, (node, count) in enumerate(images.items()):
        lines.append(f"{'' if i else 'training':<13}{node:<{width}}  {count:,} images")
    rule, stages = found["rule"], [n["id"] for n in nodes if n["id"].startswith("gate/")]
    decides = join_words(stages, "and") if stages else "nothing, as the champion is incomparable"
    lines.append(f"decides      {decides}, by {rule['metric']} with a margin of {rule['margin']:g}")
    return "\n".join(lines)
