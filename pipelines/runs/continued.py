"""A run that continues keeps the data that it began with, whatever has arrived since."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipelines.dag.inputs import SPLITS
from pipelines.dag.plan import Plan
from pipelines.dag.sources import identify
from pipelines.data import listing
from pipelines.runs.execution import UNFINISHED, Execution, is_cancelled, latest
from pipelines.spec.pipeline import Spec
from pipelines.store.artifacts import Store

Sources = Mapping[str, Any]


def keep_listings(plan: Plan, store: Store) -> None:
    """Keep the files of a plan's data sets, for :func:`continued_plan` and the embedding."""
    for one in plan.cells.values() or (plan,):
        for split in SPLITS:
            found = one.sources.get(split)
            if found and found["listed"]:
                folder = one.verdicts[f"embed/{split}"].folder
                listing.keep(store, folder, found["identity"], found["listed"])


def continued_plan(plan: Plan, store: Store, again: Callable[[Sources], Plan]) -> Plan:
    """The plan of the pipeline's unfinished run, if only more files tell it from a plan.

    Args:
        plan: of the data as it is now.
        again: makes the plan from other sources.

    Returns:
        ``plan`` itself, if there is no such run, or if its settings, inputs or files are no longer
        what they were.
    """
    last = latest(store, plan.spec.name)
    if last is None or last.state not in UNFINISHED or last.fingerprint == plan.fingerprint:
        return plan
    earlier = None if is_cancelled(store, last.id) else _earlier(plan.spec, store, last)
    if not earlier:
        return plan
    for split, found in earlier.items():
        before, now = (listing.files_of(of[split]["listed"]) for of in (earlier, plan.sources))
        found["arrived"] = len(now - before)
    made = again({**plan.sources, **earlier})
    return made if made.fingerprint == last.fingerprint else plan


def _earlier(spec: Spec, store: Store, run: Execution) -> dict[str, dict[str, Any]]:
    """Split → its data set as a run has begun with it; empty if one has changed or is unknown."""
    found = {}
    for split in SPLITS:
        source, node = getattr(spec.data, split), run.nodes.get(f"embed/{split}")
        if not source.path:
            continue
        kept = listing.kept(store, node["folder"]) if node else None
        if kept is None:
            return {}
        try:
            found[split] = identify(source, kept["files"])
        except (ValueError, OSError):
            return {}
        if found[split]["identity"] != kept["identity"]:
            return {}
    return found
