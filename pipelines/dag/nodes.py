"""A spec becomes nodes: the DAG of what must be done, and what determines each result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.dag.evaluation import Seats, cascade_of, judge_nodes
from pipelines.dag.experts import SINGLE, expert_nodes, interval_of
from pipelines.dag.inputs import input_nodes
from pipelines.dag.node import Given, Node
from pipelines.spec.pipeline import Spec

__all__ = ["SINGLE", "Given", "Node", "dag_of", "interval_of", "nodes_of"]


def nodes_of(spec: Spec, sources: Mapping[str, Any]) -> list[Node]:
    return dag_of(spec, sources)[0]


def dag_of(spec: Spec, sources: Mapping[str, Any]) -> tuple[list[Node], list[Seats]]:
    """The DAG of a spec in a valid order, and its cascade as far as it is known.

    Args:
        sources: the identity of the user's own data and encoders
            (:func:`pipelines.dag.sources.identify_all`); what nodes make needs none.
    """
    nodes = [*input_nodes(spec, sources), *expert_nodes(spec, sources)]
    cascade = cascade_of(spec)
    return [*nodes, *judge_nodes(spec, sources, cascade)], cascade
