"""Nodes of a retraining: every expert of the champion continues training on new data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipelines.dag.champion import Champion
from pipelines.dag.differences import difference
from pipelines.dag.evaluation import (
    StageEnsemble,
    adopted_ensemble,
    evaluate_node,
    measuring_nodes,
    promote_node,
    reason_incomparable,
)
from pipelines.dag.experts import train_node
from pipelines.dag.inputs import input_nodes
from pipelines.dag.node import Node
from pipelines.spec.pipeline import Spec
from pipelines.spec.stage import Expert


def retraining_nodes(
    spec: Spec, sources: Mapping[str, Any], champion: Champion
) -> tuple[list[Node], list[StageEnsemble]]:
    """Build the DAG of a retraining; the counterpart of :func:`pipelines.dag.nodes.dag_of`.

    The expert of each slot starts from the champion's expert in that slot, which keeps the slot
    unless the new one is better.

    Raises:
        ValueError: The spec describes other stages or networks than the champion's.
    """
    cascade: list[StageEnsemble] = []
    for stage in champion.stages:
        name = stage["name"]
        if name not in spec.stages:
            raise ValueError(f"the champion has a stage {name}, which the spec lacks")
        slots = champion.slots(stage)
        candidates = {slot: [f"{name}/{slot}", f"champion/{name}/{slot}"] for slot in slots}
        external = {f"champion/{name}/{slot}": result for slot, result in slots.items()}
        cascade.append(adopted_ensemble(spec, name, candidates, stage["experts"], external))
    if why := reason_incomparable(cascade, champion):
        raise ValueError(f"this spec cannot retrain the champion: {why}; use `ediffi run`")
    drift = _drift_nodes(spec, champion)
    training = [
        _retrain_node(spec, sources, champion, stage, slot)
        for stage in champion.stages
        for slot in stage["experts"]
    ]
    waits = {node.kind: node.id for node in drift if node.kind == "drift_gate"}
    training = [replace(n, unhashed_inputs={**n.unhashed_inputs, **waits}) for n in training]
    evaluation = [*measuring_nodes(spec, sources), *(ensemble.adopt_node for ensemble in cascade)]
    evaluation += [
        evaluate_node(spec, sources, "ensemble", cascade[: at + 1], ensemble)
        for at, ensemble in enumerate(cascade)
    ]
    promote = promote_node(spec, sources, cascade)
    return [*input_nodes(spec, sources), *drift, *training, *evaluation, promote], cascade


def _drift_nodes(spec: Spec, champion: Champion) -> list[Node]:
    """The node that compares the data with the champion's, and the gate that training waits for.

    They are two, so that another limit does not measure again.
    """
    drift = spec.retraining.drift
    if drift is None:
        return []
    limits = drift.settings()
    measure = Node(
        kind="drift",
        name="train",
        settings={"rows": limits.pop("rows"), "seed": spec.seed_of_data},
        inputs={"data": "embed/train"},
        external={"before": champion.data("train")},
    )
    gate = Node(
        kind="drift_gate",
        name="train",
        settings={"limits": limits},
        inputs={"drift": measure.id},
        cpus=0,
    )
    return [measure, gate]


def _retrain_node(
    spec: Spec,
    sources: Mapping[str, Any],
    champion: Champion,
    stage: Mapping[str, Any],
    slot: str,
) -> Node:
    """The node that continues training the champion's expert of a slot."""
    name = stage["name"]
    before = champion.settings[f"{name}/{slot}"]
    mine = spec.stages[name]
    batch = mine.training.batch
    share = spec.retraining.share * before["images"]
    images = max(batch, -(-int(share) // batch) * batch)
    own = mine.experts.get(slot) or (mine.adaptive and mine.grown)
    overlap = own.overlap if isinstance(own, Expert) else 0.0
    expert = Expert(images=images, overlap=overlap, **(own.overrides if own else {}))
    node = train_node(spec, sources, name, slot, expert, stage["experts"][slot])
    fixed = ("network", "noise", "sigma_data")
    was, now = ({key: of[key] for key in fixed} for of in (before, node.settings))
    if changed := difference(was, json.loads(json.dumps(now))):
        raise ValueError(
            f"stage {name} has another network than the champion: {changed[0]}; train it from "
            "scratch with `ediffi run`"
        )
    return replace(
        node,
        settings={
            **node.settings,
            "start": "ema",
            # A stream of its own: the champion has seen the same pictures with other noise.
            "stream": f"{name}/{slot}/{champion.fingerprint[:8]}",
        },
        inputs={"data": node.inputs["data"]},
        external={"parent": champion.slots(stage)[slot]},
    )
