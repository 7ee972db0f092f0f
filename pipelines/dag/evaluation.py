"""Nodes that evaluate what was trained: adopt experts, measure ensembles, choose the champion.

An expert that did not beat its parent is not used: its slot in the ensemble goes to the nearest
ancestor that did. An ensemble and the champion are compared on the same held-out images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ediffi_core import tree
from ediffi_core.noise import EVERYTHING
from pipelines.dag.champion import Champion
from pipelines.dag.experts import SINGLE, interval_of, quantiles, super_resolution
from pipelines.dag.features import MeasuredFeatures, features_nodes, worker_settings
from pipelines.dag.groups import gradients_node, merge_node, weights_node
from pipelines.dag.inputs import Encoders, activation
from pipelines.dag.node import ExternalResult, Node
from pipelines.metrics import metric
from pipelines.spec.groups import MERGED
from pipelines.spec.pipeline import Spec

BEFORE = "-before"
"""Suffix of evaluations that use the validation data the champion was measured on."""


@dataclass(frozen=True, kw_only=True)
class StageEnsemble:
    """One stage of a cascade: the slots of its ensemble, and where their experts come from."""

    stage: str
    """Name of the stage."""

    settings: Mapping[str, Any]
    """Everything that sampling needs besides the weights; ``experts`` maps slots to intervals."""

    inputs: Mapping[str, str] = field(default_factory=dict)
    """Role → id of a node that has weights, or that assigns the slots."""

    external: Mapping[str, ExternalResult] = field(default_factory=dict)
    """Role → weights from other plans."""

    node: Node | None = None
    """The adopt node that assigns the slots; None if every slot's expert is fixed."""

    @property
    def adopt_node(self) -> Node:
        """The node that assigns the slots; only for ensembles that have one."""
        assert self.node is not None
        return self.node


def cascade_of(spec: Spec) -> list[StageEnsemble]:
    """The stages' ensembles, up to the first tree that still grows or has no boundaries yet."""
    found = []
    for name, stage in spec.stages.items():
        if not (stage.ensemble and stage.is_placed):
            break
        candidates = {slot: ancestry(name, slot) for slot in stage.ensemble}
        intervals = {slot: quantiles(interval_of(stage, slot)) for slot in stage.ensemble}
        found.append(adopted_ensemble(spec, name, candidates, intervals, {}))
    return found


def evaluation_nodes(
    spec: Spec, sources: Mapping[str, Any], cascade: list[StageEnsemble]
) -> Iterator[Node]:
    """Nodes that adopt, evaluate, compare and promote, each after its dependencies.

    Args:
        sources: as of :func:`pipelines.dag.nodes.dag_of`.
        cascade: the stages' ensembles. The cascade is promoted only if it has every stage.
    """
    yield from measuring_nodes(spec, sources)
    for at, ensemble in enumerate(cascade):
        stage = spec.stages[ensemble.stage]
        yield ensemble.adopt_node
        groups = {"ensemble": cascade[: at + 1]}
        if not at:
            groups["root"] = [single_expert(spec, ensemble.stage, tree.ROOT)]
        more = {name: single_expert(spec, ensemble.stage, name) for name in stage.continued}
        if stage.merge is not None:
            yield merge_node(spec, ensemble.stage)
            more[MERGED] = single_expert(spec, ensemble.stage, MERGED)
        more |= {name: routed_ensemble(spec, ensemble.stage, name) for name in stage.routings}
        groups |= {name: [*cascade[:at], one] for name, one in more.items()}
        for group, chain in groups.items():
            yield evaluate_node(spec, sources, group, chain, ensemble)
        if stage.single:
            yield compare_node(ensemble.stage)
        if (bins := spec.evaluate.gradients) is not None:
            yield gradients_node(spec, ensemble.stage, bins)
    if len(cascade) == len(spec.stages):
        yield promote_node(spec, sources, cascade)


def metric_settings(spec: Spec) -> dict[str, dict[str, Any]]:
    """Metric → its options and version, which determine its values."""
    return {
        name: {"options": options, "version": metric(name, options).version}
        for name, options in spec.evaluate.metrics.items()
    }


def measuring_nodes(spec: Spec, sources: Mapping[str, Any]) -> Iterator[Node]:
    """Nodes of what all evaluations measure with: fitted metrics, and features of real pictures."""
    yield from metric_nodes(spec)
    yield from features_nodes(spec, sources)


def metric_nodes(spec: Spec) -> Iterator[Node]:
    """Nodes that fit the spec's metrics, once for all evaluations."""
    resolutions = sorted({stage.resolution for stage in spec.stages.values()})
    for name, what in metric_settings(spec).items():
        settings = {"metric": name, **what, "resolutions": resolutions}
        settings |= {"seed": spec.seed_of_data}
        yield Node(kind="metric", name=name, settings=settings)


def compare_node(stage: str) -> Node:
    """The node that compares a stage's ensemble with the single model of the same budget."""
    measured = {group: f"evaluate/{stage}/{group}" for group in ("ensemble", SINGLE)}
    return Node(kind="compare", name=stage, settings={}, inputs=measured, cpus=0)


def ancestry(stage: str, slot: str) -> list[str]:
    """A slot's own expert and its ancestors, nearest first, as ``stage/expert``."""
    found, name = [], slot
    while name:
        found.append(f"{stage}/{name}")
        name = tree.parent(name) or ""
    return found


def adopted_ensemble(
    spec: Spec,
    stage: str,
    candidates: Mapping[str, list[str]],
    intervals: Mapping[str, list[float]],
    external: Mapping[str, ExternalResult],
) -> StageEnsemble:
    """A stage's ensemble whose slots an adopt node assigns.

    Args:
        candidates: slot → experts that may fill it, in order of preference. The last one fills it
            if no other is good enough.
        intervals: slot → its noise interval, ``[q_lo, q_hi]``.
        external: candidates that other plans have trained.
    """
    named = sorted({role for roles in candidates.values() for role in roles} - set(external))
    trained = {role: f"train/{role}" for role in named}
    node = Node(
        kind="adopt",
        name=stage,
        settings={"rule": spec.stages[stage].adopt, "seats": dict(candidates)},
        inputs=trained,
        external=external,
        cpus=0,
    )
    return StageEnsemble(
        stage=stage,
        settings=_sampling_settings(spec, stage, intervals),
        inputs={f"adopt/{stage}": node.id} | trained,
        external=external,
        node=node,
    )


def single_expert(spec: Spec, stage: str, expert: str) -> StageEnsemble:
    """A stage whose only expert works at all noise levels."""
    settings = _sampling_settings(spec, stage, {expert: quantiles(EVERYTHING)})
    return StageEnsemble(
        stage=stage,
        settings=settings,
        inputs={f"{stage}/{expert}": weights_node(stage, expert)},
    )


def routed_ensemble(spec: Spec, name: str, routing: str) -> StageEnsemble:
    """A stage's ensemble whose slots are served as a routing of the spec says, adopted or not."""
    stage = spec.stages[name]
    serves = {slot: slot for slot in stage.ensemble} | stage.routings[routing]
    intervals = {slot: quantiles(interval_of(stage, slot)) for slot in stage.ensemble}
    return StageEnsemble(
        stage=name,
        settings={**_sampling_settings(spec, name, intervals), "routing": serves},
        inputs={f"{name}/{expert}": weights_node(name, expert) for expert in serves.values()},
    )


def _sampling_settings(
    spec: Spec, name: str, intervals: Mapping[str, list[float]]
) -> dict[str, Any]:
    stage = spec.stages[name]
    return {
        "name": name,
        "resolution": stage.resolution,
        "sampling": stage.sampling.settings(),
        **super_resolution(spec, name),
        "experts": dict(intervals),
    }


def shares(count: int) -> dict[str, list[float]]:
    """Equal shares of p(σ), from low to high noise: ``1/8`` → its quantiles ``[0, 0.125]``."""
    return {f"{i + 1}/{count}": [i / count, (i + 1) / count] for i in range(count)}


def losses_settings(spec: Spec, own: StageEnsemble) -> dict[str, Any]:
    """How validation losses of a stage are measured, the same for every model of the stage.

    Nothing here depends on the champion: a candidate's evaluation is an input of its promote node,
    so it must stay the same when the champion changes.

    Args:
        own: the stage's ensemble in this plan. Each of its experts' intervals gets the same number
            of draws; with ``evaluate.losses.strata``, each of so many shares of p(σ) does.
    """
    how, name = spec.evaluate.losses, own.stage
    experts = shares(how.strata) if how.strata else dict(own.settings["experts"])
    stage = spec.stages[name]
    found: dict[str, Any] = {
        "draws": how.draws_each(len(experts)),
        "experts": experts,
        "cut": {"P_mean": stage.P_mean, "P_std": stage.P_std},
        "noise": {"P_mean": how.P_mean, "P_std": how.P_std},
        "sigma_data": how.sigma_data,
    }
    if below := super_resolution(spec, name):
        degrade = how.degrade.settings()
        found["super_resolution"] = {**below["super_resolution"], "degrade": degrade}
    return found


def evaluate_node(
    spec: Spec,
    sources: Mapping[str, Any],
    group: str,
    chain: list[StageEnsemble],
    own: StageEnsemble,
    validation: ExternalResult | None = None,
    trained_with: Mapping[str, Any] | None = None,
) -> Node:
    """The node that evaluates the last stage of a chain, on top of the stages below it.

    Args:
        sources: as of :func:`pipelines.dag.nodes.dag_of`.
        group: what is evaluated: ``ensemble``, ``root``, ``single``, ``champion``, ``merged``, or
            the name of a baseline or a routing.
        chain: the stages to sample with, the base first.
        own: the last stage's ensemble in this plan; losses are measured on its intervals.
        validation: validation data of another plan; None for this plan's.
        trained_with: identity of the champion's encoders. If the validation data was embedded with
            other encoders, nothing is measured.
    """
    encoders = Encoders.of(spec, sources)
    sets = MeasuredFeatures({}, {}, {})
    if validation is None:  # there are no features of another plan's pictures
        sets = MeasuredFeatures.of(spec, sources, chain[-1].stage, own=trained_with is None)
    settings = {
        "captions": spec.evaluate.captions,
        "scoring_clip": spec.evaluate.clip and sources["encoders"]["scorer"],
        "scoring_pretrained": spec.evaluate.clip and spec.evaluate.clip_pretrained,
        **activation("scoring", spec.evaluate.clip or "", spec.evaluate.clip_pretrained),
        "stages": [ensemble.settings for ensemble in chain],
        "encoders": encoders.identity,
        "metrics": metric_settings(spec),
        "losses": losses_settings(spec, own),
        "controls": group == "ensemble",
        "seed": spec.seed,
        **({"trained_with": trained_with} if trained_with is not None else {}),
        **sets.settings,
    }
    inputs = {role: node for ensemble in chain for role, node in ensemble.inputs.items()}
    external = {role: result for ensemble in chain for role, result in ensemble.external.items()}
    if validation:
        external["validation"] = validation
    else:
        inputs["validation"] = "embed/validation"
    inputs |= {f"metric/{name}": f"metric/{name}" for name in spec.evaluate.metrics}
    return Node(
        kind="evaluate",
        name=f"{chain[-1].stage}/{group}",
        settings=settings,
        inputs={**inputs, **encoders.inputs, **sets.inputs},
        external=external,
        runtime={
            "batch": spec.evaluate.batch,
            "encoders": encoders.named,
            "scoring_clip": spec.evaluate.clip,
            **worker_settings(spec),
            **sets.runtime,
        },
        cpus=spec.evaluate.workers * spec.evaluate.cpus,
        gpus=spec.evaluate.workers * spec.evaluate.gpus,
        labels=spec.evaluate.labels,
    )


def promote_node(spec: Spec, sources: Mapping[str, Any], cascade: list[StageEnsemble]) -> Node:
    """The node that offers a whole cascade as the candidate for champion."""
    encoders = Encoders.of(spec, sources)
    inputs = {role: node for ensemble in cascade for role, node in ensemble.inputs.items()}
    external = {role: result for ensemble in cascade for role, result in ensemble.external.items()}
    evaluations = {f"evaluation/{s.stage}": f"evaluate/{s.stage}/ensemble" for s in cascade}
    return Node(
        kind="promote",
        name=spec.name,
        settings={
            "stages": [ensemble.settings for ensemble in cascade],
            "model": spec.name,
            "encoders": encoders.identity,
        },
        inputs={**inputs, "data": "embed/train", **encoders.inputs, **evaluations},
        external=external,
        runtime={"encoders": encoders.named},
    )


def champion_comparison_nodes(
    spec: Spec,
    sources: Mapping[str, Any],
    cascade: list[StageEnsemble],
    champion: Champion | None,
    fingerprints: Mapping[str, str],
) -> list[Node]:
    """Further nodes of a plan, which compare its ensemble with the champion.

    Args:
        cascade: the plan's own.
        champion: None if there is none.
        fingerprints: id → fingerprint of the plan's other nodes.

    Returns:
        No nodes if there is nothing to compare: no champion, no finished cascade in the plan, an
        ensemble that is the champion itself, or one with other stages.
    """
    mine = fingerprints.get(f"promote/{spec.name}")
    if champion is None or mine is None or mine == champion.fingerprint:
        return []
    if reason_incomparable(cascade, champion):
        return []
    before = champion.data("validation").fingerprint != fingerprints["embed/validation"]
    return list(gate_nodes(spec, sources, cascade, champion, before=before))


def reason_incomparable(cascade: list[StageEnsemble], champion: Champion) -> str:
    """Explain why a cascade and the champion cannot be compared; empty if they can."""
    shapes = [
        [(s["name"], s["resolution"]) for s in stages]
        for stages in ([ensemble.settings for ensemble in cascade], champion.stages)
    ]
    if shapes[0] == shapes[1]:
        return ""
    mine, theirs = (" → ".join(f"{n} {side}" for n, side in shape) for shape in shapes)
    return f"its stages are {mine}, the champion's {theirs}"


def gate_nodes(
    spec: Spec,
    sources: Mapping[str, Any],
    cascade: list[StageEnsemble],
    champion: Champion,
    *,
    before: bool,
) -> Iterator[Node]:
    """Nodes that evaluate the champion like the candidate, and the gate that decides between them.

    Args:
        cascade: the candidate's.
        before: whether the champion was measured on other validation data. If so, both are also
            evaluated on that data.
    """
    chain: list[StageEnsemble] = []
    measured: dict[str, str] = {}
    for mine, theirs in zip(cascade, champion.stages, strict=True):
        stage = mine.stage
        external = {f"{stage}/{slot}": result for slot, result in champion.slots(theirs).items()}
        chain.append(StageEnsemble(stage=stage, settings=theirs, external=external))
        own = cascade[: len(chain)]
        known = champion.trained_with
        nodes = [evaluate_node(spec, sources, "champion", list(chain), mine, None, known)]
        if before:
            old = champion.data("validation")
            nodes += [
                evaluate_node(spec, sources, f"{group}{BEFORE}", list(who), mine, old, known)
                for group, who in (("ensemble", own), ("champion", chain))
            ]
        yield from nodes
        measured[f"ensemble/{stage}"] = f"evaluate/{stage}/ensemble"
        measured |= {f"{n.name.rpartition('/')[2]}/{stage}": n.id for n in nodes}
    yield Node(
        kind="gate",
        name=spec.name,
        settings={"rule": spec.promotion.settings(), "champion": champion.fingerprint},
        inputs={**measured, "candidate": f"promote/{spec.name}"},
        cpus=0,
    )
