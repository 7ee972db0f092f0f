"""Build the DAG of a spec: its nodes, and what determines each node's result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.dag.evaluation import StageEnsemble, cascade_of, evaluation_nodes
from pipelines.dag.experts import SINGLE, expert_nodes, interval_of
from pipelines.dag.inputs import input_nodes
from pipelines.dag.node import ExternalResult, Node
from pipelines.dag.probes import probe_nodes
from pipelines.spec.pipeline import Spec

__all__ = ["SINGLE", "ExternalResult", "Node", "dag_of", "interval_of", "nodes_of"]


def nodes_of(spec: Spec, sources: Mapping[str, Any]) -> list[Node]:
    """The nodes of a spec, each after its dependencies; arguments as of :func:`dag_of`."""
    return dag_of(spec, sources)[0]


def dag_of(spec: Spec, sources: Mapping[str, Any]) -> tuple[list[Node], list[StageEnsemble]]:
    """Build the DAG of a spec.

    Args:
        sources: identity of the user's own data and encoders
            (:func:`pipelines.dag.sources.identify_all`). Data and encoders that nodes make are not
            in it.

    Returns:
        The nodes, each after its dependencies, and the stage ensembles that are known so far (those
        below the first tree that still grows).
    """
    nodes = [*input_nodes(spec, sources), *expert_nodes(spec, sources)]
    cascade = cascade_of(spec)
    measured = list(evaluation_nodes(spec, sources, cascade))
    return [*nodes, *measured, *probe_nodes(spec, measured)], cascade
