"""Commit a node's result to the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipelines.dag.node import path_of
from pipelines.dag.plan import ExternalResult, Node, Verdict
from pipelines.runs.context import Result
from pipelines.runs.execution import now
from pipelines.store.artifacts import Store


def commit(
    store: Store,
    verdict: Verdict,
    result: Result,
    manifests: dict[str, Any],
    seconds: float,
    declare: Callable[[str, bytes], None] | None = None,
    finished: str = "",
) -> dict[str, Any]:
    """Write a node's manifest, which declares it done.

    Also removes its interim results, and records its settings and inputs as the latest of this
    node, from which the next plan works out what has changed.

    Args:
        result: what the step returned.
        manifests: node id → manifest, of at least the node's inputs.
        seconds: how long the step took.
        declare: declares the node done, given its folder and its manifest as JSON: a driver's
            :meth:`pipelines.runs.claims.Claims.commit`. By default the manifest is just written.
        finished: when it ended, as of :func:`pipelines.runs.execution.now`; by default now.

    Returns:
        The manifest.
    """
    node: Node = verdict.node
    inputs = {
        role: {"node": path_of(i), "fingerprint": manifests[i]["fingerprint"]}
        for role, i in node.inputs.items()
    }
    inputs |= {
        role: {"node": external_node_id(external), "fingerprint": external.fingerprint}
        for role, external in node.external.items()
    }
    manifest = store.commit(
        verdict.folder,
        result.files,
        {
            "kind": node.kind,
            "name": node.name,
            "fingerprint": verdict.fingerprint,
            "settings": dict(node.settings),
            "inputs": inputs,
            "metrics": result.metrics,
            "info": result.info,
            "seconds": round(seconds, 1),
            "finished": finished or now(),
        },
        write=declare and (lambda _, manifest: declare(verdict.folder, manifest)),
    )
    for folder in result.scratch:
        store.remove_folder(f"{verdict.folder}/{folder}")
    latest = {k: manifest[k] for k in ("fingerprint", "settings", "inputs")}
    store.write_json(f"nodes/{node.path}.latest.json", latest)
    return manifest


def external_manifests(store: Store, node: Node) -> dict[str, Any]:
    """Role → manifest of the other plans' nodes that a node reads.

    Raises:
        ValueError: One is no longer in the store.
    """
    found = {}
    for role, external in node.external.items():
        found[role] = store.manifest(external.folder)
        if found[role] is None:
            raise ValueError(
                f"{store.full(external.folder)} is missing; run the pipeline that made it again"
            )
    return found


def external_node_id(external: ExternalResult) -> str:
    """Id of another plan's node: ``train/base/E1_1``."""
    return external.folder.removeprefix("nodes/").removesuffix(f"-{external.fingerprint}")
