"""Nodes that judge what was trained: who is adopted, what the ensemble is worth, who is champion.

An expert that did not beat its parent is not used: its seat in the ensemble goes to the nearest
ancestor that did. An ensemble is compared with the champion on the same held-out pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ediffi_core import tree
from ediffi_core.noise import EVERYTHING
from pipelines.dag.champion import Champion
from pipelines.dag.experts import SINGLE, bounds, interval_of, super_resolution
from pipelines.dag.inputs import Encoders, activation
from pipelines.dag.node import Given, Node
from pipelines.metrics import metric
from pipelines.spec.pipeline import Spec

BEFORE = "-before"
"""Ends the names of what is measured on the champion's own validation data."""


@dataclass(frozen=True, kw_only=True)
class Seats:
    """Who may draw for one stage of a cascade: its seats, and what says who sits there."""

    stage: str
    settings: Mapping[str, Any]
    """What drawing with it needs besides the weights."""

    inputs: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, Given] = field(default_factory=dict)
    node: Node | None = None
    """That gives the seats away; None where they are given."""

    @property
    def decided_by(self) -> Node:
        assert self.node is not None
        return self.node


def cascade_of(spec: Spec) -> list[Seats]:
    """The stages whose ensembles are known; a tree that grows has none until it is grown."""
    found = []
    for name, stage in spec.stages.items():
        if not stage.ensemble:
            break
        lines = {seat: line(name, seat) for seat in stage.ensemble}
        intervals = {seat: bounds(interval_of(stage, seat)) for seat in stage.ensemble}
        found.append(adopted(spec, name, lines, intervals, {}))
    return found


def judge_nodes(spec: Spec, sources: Mapping[str, Any], cascade: list[Seats]) -> Iterator[Node]:
    yield from metric_nodes(spec)
    for at, seats in enumerate(cascade):
        stage = spec.stages[seats.stage]
        yield seats.decided_by
        groups = {"ensemble": cascade[: at + 1]}
        if not at:
            groups["root"] = [only(spec, seats.stage, tree.ROOT)]
        if stage.single:
            groups[SINGLE] = [*cascade[:at], only(spec, seats.stage, SINGLE)]
        for group, chain in groups.items():
            yield evaluate_node(spec, sources, group, chain, seats)
        if stage.single:
            yield compare_node(seats.stage)
    if len(cascade) == len(spec.stages):
        yield promote_node(spec, sources, cascade)


def metric_settings(spec: Spec) -> dict[str, dict[str, Any]]:
    """What of each metric determines what it measures."""
    return {
        name: {"options": options, "version": metric(name, options).version}
        for name, options in spec.evaluate.metrics.items()
    }


def metric_nodes(spec: Spec) -> Iterator[Node]:
    resolutions = sorted({stage.resolution for stage in spec.stages.values()})
    for name, what in metric_settings(spec).items():
        settings = {"metric": name, **what, "resolutions": resolutions, "seed": spec.seed}
        yield Node(kind="metric", name=name, settings=settings)


def compare_node(stage: str) -> Node:
    """The ensemble against the single model that had its budget."""
    measured = {group: f"evaluate/{stage}/{group}" for group in ("ensemble", SINGLE)}
    return Node(kind="compare", name=stage, settings={}, inputs=measured, cpus=0)


def line(stage: str, seat: str) -> list[str]:
    """The expert a seat is for and its ancestors, the nearest first."""
    found, name = [], seat
    while name:
        found.append(f"{stage}/{name}")
        name = tree.parent(name) or ""
    return found


def adopted(
    spec: Spec,
    stage: str,
    lines: Mapping[str, list[str]],
    intervals: Mapping[str, list[float]],
    given: Mapping[str, Given],
) -> Seats:
    """A stage whose seats an adopt node gives away.

    Args:
        lines: seat → who may have it, the one it is for first. The last has it in any case.
        given: those of them that other plans have trained.
    """
    named = sorted({role for line in lines.values() for role in line} - set(given))
    trained = {role: f"train/{role}" for role in named}
    node = Node(
        kind="adopt",
        name=stage,
        settings={"rule": spec.stages[stage].adopt, "seats": dict(lines)},
        inputs=trained,
        given=given,
        cpus=0,
    )
    return Seats(
        stage=stage,
        settings=_drawing(spec, stage, intervals),
        inputs={f"adopt/{stage}": node.id} | trained,
        given=given,
        node=node,
    )


def only(spec: Spec, stage: str, expert: str) -> Seats:
    """A stage drawn by one expert at all noise levels."""
    settings = _drawing(spec, stage, {expert: bounds(EVERYTHING)})
    return Seats(
        stage=stage,
        settings=settings,
        inputs={f"{stage}/{expert}": f"train/{stage}/{expert}"},
    )


def _drawing(spec: Spec, name: str, seats: Mapping[str, list[float]]) -> dict[str, Any]:
    stage = spec.stages[name]
    return {
        "name": name,
        "resolution": stage.resolution,
        "sampling": stage.sampling.model_dump(),
        **super_resolution(spec, name),
        "experts": dict(seats),
    }


def losses_settings(spec: Spec, own: Seats) -> dict[str, Any]:
    """How the losses of a stage's models are measured, whoever trained them and how.

    Nothing of it depends on a champion: a candidate's evaluation is part of what is promoted, and
    stays the same whoever is champion by then.

    Args:
        own: the stage's ensemble in this plan, whose experts' intervals have equal draws.
    """
    how, name = spec.evaluate.losses, own.stage
    experts = dict(own.settings["experts"])
    stage = spec.stages[name]
    found: dict[str, Any] = {
        "draws": how.draws_each(len(experts)),
        "experts": experts,
        "cut": {"P_mean": stage.P_mean, "P_std": stage.P_std},
        "noise": {"P_mean": how.P_mean, "P_std": how.P_std},
        "sigma_data": how.sigma_data,
    }
    if below := super_resolution(spec, name):
        degrade = how.degrade.model_dump()
        found["super_resolution"] = {**below["super_resolution"], "degrade": degrade}
    return found


def evaluate_node(
    spec: Spec,
    sources: Mapping[str, Any],
    group: str,
    chain: list[Seats],
    own: Seats,
    validation: Given | None = None,
    trained_with: Mapping[str, Any] | None = None,
) -> Node:
    """The last stage of a chain, behind those below it.

    Args:
        own: the last stage's ensemble in this plan, whose experts' intervals are measured.
        validation: another plan's; else this one's.
        trained_with: the encoders of a champion; if the validation data has others, nothing is
            measured.
    """
    encoders = Encoders.of(spec, sources)
    settings = {
        "captions": spec.evaluate.captions,
        "scoring_clip": spec.evaluate.clip and sources["encoders"]["scorer"],
        "scoring_pretrained": spec.evaluate.clip and spec.evaluate.clip_pretrained,
        **activation("scoring", spec.evaluate.clip or "", spec.evaluate.clip_pretrained),
        "stages": [seats.settings for seats in chain],
        "encoders": encoders.identity,
        "metrics": metric_settings(spec),
        "losses": losses_settings(spec, own),
        "controls": group == "ensemble",
        "seed": spec.seed,
        **({"trained_with": trained_with} if trained_with is not None else {}),
    }
    inputs = {role: node for seats in chain for role, node in seats.inputs.items()}
    given = {role: result for seats in chain for role, result in seats.given.items()}
    if validation:
        given["validation"] = validation
    else:
        inputs["validation"] = "embed/validation"
    inputs |= {f"metric/{name}": f"metric/{name}" for name in spec.evaluate.metrics}
    return Node(
        kind="evaluate",
        name=f"{chain[-1].stage}/{group}",
        settings=settings,
        inputs={**inputs, **encoders.inputs},
        given=given,
        runtime={
            "batch": spec.evaluate.batch,
            "encoders": encoders.named,
            "scoring_clip": spec.evaluate.clip,
            "gpus": spec.evaluate.gpus,
        },
        cpus=spec.evaluate.cpus,
        gpus=spec.evaluate.gpus,
        labels=spec.evaluate.labels,
    )


def promote_node(spec: Spec, sources: Mapping[str, Any], cascade: list[Seats]) -> Node:
    encoders = Encoders.of(spec, sources)
    inputs = {role: node for seats in cascade for role, node in seats.inputs.items()}
    evaluations = {f"evaluation/{s.stage}": f"evaluate/{s.stage}/ensemble" for s in cascade}
    return Node(
        kind="promote",
        name=spec.name,
        settings={
            "stages": [seats.settings for seats in cascade],
            "model": spec.name,
            "encoders": encoders.identity,
        },
        inputs={**inputs, "data": "embed/train", **encoders.inputs, **evaluations},
        given={role: result for seats in cascade for role, result in seats.given.items()},
        runtime={"encoders": encoders.named},
    )


def comparison(
    spec: Spec,
    sources: Mapping[str, Any],
    cascade: list[Seats],
    champion: Champion | None,
    fingerprints: Mapping[str, str],
) -> list[Node]:
    """What a plan needs besides, to compare its ensemble with the champion.

    Args:
        fingerprints: of the plan's other nodes.
    """
    mine = fingerprints.get(f"promote/{spec.name}")
    if champion is None or mine is None or mine == champion.fingerprint:
        return []
    if incomparable(cascade, champion):
        return []
    before = champion.data("validation").fingerprint != fingerprints["embed/validation"]
    return list(gate_nodes(spec, sources, cascade, champion, before=before))


def incomparable(cascade: list[Seats], champion: Champion) -> str:
    """Why no measure would be fair to both; nothing if there are some."""
    shapes = [
        [(s["name"], s["resolution"]) for s in stages]
        for stages in ([seats.settings for seats in cascade], champion.stages)
    ]
    if shapes[0] == shapes[1]:
        return ""
    mine, theirs = (" → ".join(f"{n} {side}" for n, side in shape) for shape in shapes)
    return f"its stages are {mine}, the champion's {theirs}"


def gate_nodes(
    spec: Spec,
    sources: Mapping[str, Any],
    cascade: list[Seats],
    champion: Champion,
    *,
    before: bool,
) -> Iterator[Node]:
    """Measures the champion as the candidate was, and decides between them.

    Args:
        cascade: the candidate's.
        before: whether the champion was measured on other validation data, which both of them are
            then measured on too.
    """
    chain: list[Seats] = []
    measured: dict[str, str] = {}
    for mine, theirs in zip(cascade, champion.stages, strict=True):
        stage = mine.stage
        given = {f"{stage}/{s}": result for s, result in champion.seats(theirs).items()}
        chain.append(Seats(stage=stage, settings=theirs, given=given))
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
        settings={"rule": spec.promotion.model_dump(), "champion": champion.fingerprint},
        inputs={**measured, "candidate": f"promote/{spec.name}"},
        cpus=0,
    )
