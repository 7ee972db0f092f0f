"""Nodes that go on from the champion: every expert of it, trained on with new data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipelines.dag.champion import Champion
from pipelines.dag.differences import difference
from pipelines.dag.evaluation import (
    Seats,
    adopted,
    evaluate_node,
    incomparable,
    metric_nodes,
    promote_node,
)
from pipelines.dag.experts import train_node
from pipelines.dag.inputs import input_nodes
from pipelines.dag.node import Node
from pipelines.spec.pipeline import Expert, Spec


def again_nodes(
    spec: Spec, sources: Mapping[str, Any], champion: Champion
) -> tuple[list[Node], list[Seats]]:
    """As :func:`pipelines.dag.nodes.dag_of`, of a retraining.

    Each seat's expert starts from whoever sits there now, who keeps the seat if it is not beaten.

    Raises:
        ValueError: The spec describes other networks than the champion's.
    """
    cascade: list[Seats] = []
    for stage in champion.stages:
        name = stage["name"]
        if name not in spec.stages:
            raise ValueError(f"the champion has a stage {name}, which the spec lacks")
        theirs = champion.seats(stage)
        lines = {seat: [f"{name}/{seat}", f"champion/{name}/{seat}"] for seat in theirs}
        given = {f"champion/{name}/{seat}": result for seat, result in theirs.items()}
        cascade.append(adopted(spec, name, lines, stage["experts"], given))
    if why := incomparable(cascade, champion):
        raise ValueError(f"this spec cannot retrain the champion: {why}; use `ediffi run`")
    trained = [
        _trained_on(spec, sources, champion, stage, seat)
        for stage in champion.stages
        for seat in stage["experts"]
    ]
    judged = [*metric_nodes(spec), *(seats.decided_by for seats in cascade)]
    judged += [
        evaluate_node(spec, sources, "ensemble", cascade[: at + 1], seats)
        for at, seats in enumerate(cascade)
    ]
    promoted = promote_node(spec, sources, cascade)
    return [*input_nodes(spec, sources), *trained, *judged, promoted], cascade


def _trained_on(
    spec: Spec,
    sources: Mapping[str, Any],
    champion: Champion,
    stage: Mapping[str, Any],
    seat: str,
) -> Node:
    """A seat's expert, from the weights that sit there now."""
    name = stage["name"]
    before = champion.settings[f"{name}/{seat}"]
    mine = spec.stages[name]
    batch = mine.training.batch
    share = spec.retraining.share * before["images"]
    images = max(batch, -(-int(share) // batch) * batch)
    own = mine.experts.get(seat) or (mine.adaptive and mine.grown)
    expert = Expert(images=images, **(own.overrides if own else {}))
    node = train_node(spec, sources, name, seat, expert, stage["experts"][seat])
    kept = ("network", "noise", "sigma_data")
    was, now = ({key: of[key] for key in kept} for of in (before, node.settings))
    if changed := difference(was, json.loads(json.dumps(now))):
        raise ValueError(
            f"stage {name} has another network than the champion: {changed[0]}; train it anew with "
            "`ediffi run`"
        )
    return replace(
        node,
        settings={
            **node.settings,
            "start": "ema",
            # Other draws than the champion's, which saw the same pictures.
            "stream": f"{name}/{seat}/{champion.fingerprint[:8]}",
        },
        inputs={"data": node.inputs["data"]},
        given={"parent": champion.seats(stage)[seat]},
    )
