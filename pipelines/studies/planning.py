"""Plan a study: the plans of its cells, merged into one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.dag import plan, sources
from pipelines.dag.merged import merge
from pipelines.dag.plan import Node, Plan, Verdict, images_to_train
from pipelines.formatting import align_columns, duration, number
from pipelines.planning import embedding, lint
from pipelines.planning.cost import Cost
from pipelines.planning.findings import Finding
from pipelines.planning.forecast import Forecast, as_data, make_forecast
from pipelines.planning.node_costs import costs_of
from pipelines.reports import plan as plan_view
from pipelines.spec.pipeline import Spec
from pipelines.store import remote
from pipelines.store.artifacts import Store
from pipelines.studies.cells import Opened

Sources = Mapping[str, Mapping[str, Any]]
"""Cell → identity of its data and encoders, as of :func:`pipelines.dag.sources.identify_all`."""


def sources_of(opened: Opened, *, assume: bool = False) -> Sources:
    """Identify what the cells read from outside, each thing once.

    Args:
        assume: Take the size of the data from ``pairs:`` where the spec gives it.

    Raises:
        ValueError: A cell's data or encoders cannot be identified.
    """
    identified: dict[str, Mapping[str, Any]] = {}
    found = {}
    for cell in opened.cells:
        key = _outside(cell.spec)
        if key not in identified:
            identified[key] = sources.identify_all(cell.spec, assume)
        found[cell.name] = identified[key]
    return found


def make(opened: Opened, store: Store, outside: Sources) -> Plan:
    """Plan all cells of a study over one store."""
    plans = {c.name: plan.make(c.spec, store, outside[c.name]) for c in opened.cells}
    return merge(opened.base.model_copy(update={"stages": {}}), plans)


def _outside(spec: Spec) -> str:
    """What decides on the identity of a spec's sources, as text."""
    parts = (spec.data, spec.encoders, spec.evaluate)
    return json.dumps([part.settings() for part in parts], sort_keys=True)


def findings(made: Plan) -> list[Finding]:
    """What the checks of all cells find, each finding once; errors come first."""
    found: dict[tuple[str, str], Finding] = {}
    for cell in made.cells.values():
        for one in lint.check(cell.spec, cell):
            found.setdefault((one.node, one.text), one)
    return sorted(found.values(), key=lambda f: f.level)


@dataclass(frozen=True, kw_only=True)
class Work:
    """The nodes of one kind."""

    kind: str
    nodes: int
    reused: int
    images: int
    """Images that are still to be trained on; 0 for other kinds."""

    seconds: float | None
    """Estimated seconds of the nodes still to run, by the nodes that are done; None if there are
    none of the kind."""


def work_of(made: Plan) -> list[Work]:
    """The nodes of each kind, in the order of the plan, with an estimate of the time left."""
    kinds: dict[str, list[Verdict]] = {}
    for verdict in made.verdicts.values():
        kinds.setdefault(verdict.node.kind, []).append(verdict)
    found = []
    for kind, verdicts in kinds.items():
        todo = [v for v in verdicts if not v.cached]
        images = sum(images_to_train(made, v.node) or 0 for v in todo)
        found.append(
            Work(
                kind=kind,
                nodes=len(verdicts),
                reused=len(verdicts) - len(todo),
                images=images,
                seconds=_seconds_left(made, [v for v in verdicts if v.cached], todo),
            )
        )
    return found


def _seconds_left(made: Plan, done: list[Verdict], todo: list[Verdict]) -> float | None:
    """Seconds of the nodes still to run: of a training by images and network, of others by their
    kind's mean."""
    if not todo:
        return 0.0
    if not done:
        return None
    sizes: dict[str, list[float]] = {}
    for v in done:
        assert v.manifest is not None
        rate = v.manifest["seconds"] / _size(made, v.node)
        sizes.setdefault(_alike(v.node), []).append(rate)
    everything = [rate for rates in sizes.values() for rate in rates]
    mean = sum(everything) / len(everything)
    total = 0.0
    for v in todo:
        rates = sizes.get(_alike(v.node))
        total += (sum(rates) / len(rates) if rates else mean) * _size(made, v.node)
    return total


def _alike(node: Node) -> str:
    """What nodes of about the same speed have in common."""
    if node.kind == "train":
        return json.dumps([node.settings["network"], node.settings["resolution"]], sort_keys=True)
    return str(node.name.rpartition("/")[2])


def _size(made: Plan, node: Node) -> float:
    return float(images_to_train(made, node) or 1)


def forecast(made: Plan, store: Store, outside: Sources) -> Forecast | None:
    """Costs and schedule on the study's cluster; None without ``cluster:``.

    Raises:
        ValueError: A node could never run on the cluster.
    """
    cluster = made.spec.cluster
    if cluster is None:
        return None
    ids = {v.folder: i for i, v in made.verdicts.items()}
    costs: dict[str, Cost] = {}
    for name, cell in made.cells.items():
        work = embedding.estimate(cell, store, outside[name])
        for node, cost in costs_of(cell, cluster, work).items():
            if (mine := ids.get(cell.verdicts[node].folder)) is not None:
                costs.setdefault(mine, cost)
    ordered = {i: costs[i] for i in made.verdicts if i in costs}
    return make_forecast(made, {}, ordered)


def text(opened: Opened, made: Plan, seen: Forecast | None = None) -> str:
    """A study's plan for the terminal: experiments, cells, and the nodes of each kind.

    Args:
        seen: Costs and schedule, which are shown below.
    """
    study = opened.study
    lines = [f"study {study.study}: {len(opened.cells)} cells in {len(study.experiments)} "]
    lines[0] += "experiment" if len(study.experiments) == 1 else "experiments"
    for name, experiment in study.experiments.items():
        count = sum(name in cell.experiments for cell in opened.cells)
        lines.append(f"  {name}: {count} cells; {experiment.asks}")
    work = work_of(made)
    rows = [["", "nodes", "done", "to run", "images to train", "time on one CPU"]]
    for of in work:
        left = of.nodes - of.reused
        seconds = "" if of.seconds == 0 else "?" if of.seconds is None else duration(of.seconds)
        images = number(of.images) if of.images else ""
        rows.append([of.kind, str(of.nodes), str(of.reused), str(left), images, seconds])
    lines += ["", *align_columns(rows, right={1, 2, 3, 4, 5})]
    shared = sum(len(p.verdicts) for p in made.cells.values()) - len(made.verdicts)
    todo = sum(of.nodes - of.reused for of in work)
    lines += ["", f"{todo} to run, {len(made.verdicts) - todo} reused; cells share {shared} more"]
    known = [of.seconds for of in work if of.seconds is not None]
    if todo and len(known) == len(work):
        lines[-1] += f"; about {duration(sum(known) / made.spec.cpus)} on {made.spec.cpus} CPUs"
    if seen and todo:
        lines += ["", *plan_view.totals(made, seen)]
    return "\n".join(lines)


def data(opened: Opened, made: Plan, seen: Forecast | None = None) -> dict[str, Any]:
    """The same as JSON, with every cell's nodes."""
    return {
        "study": opened.study.study,
        "cells": [
            {"name": c.name, "at": dict(c.at), "experiments": list(c.experiments)}
            for c in opened.cells
        ],
        "work": [of.__dict__ for of in work_of(made)],
        "nodes": [
            {"id": v.node.id, "fingerprint": v.fingerprint, "cached": v.cached, "why": v.why}
            for v in made.verdicts.values()
        ],
        **({"outlook": as_data(seen)} if seen else {}),
    }


def store_of(opened: Opened, *, nowhere: bool = False) -> Store:
    """The study's store; with ``nowhere``, an empty one."""
    remote.export_settings(opened.base.s3.variables())
    return Store.at(os.devnull if nowhere else opened.base.storage).check_access()


def done_cells(made: Plan) -> list[str]:
    """Cells all of whose nodes are in the store, apart from those that the study leaves out."""
    kept = {v.folder for v in made.verdicts.values()}
    return [
        name
        for name, cell in made.cells.items()
        if all(v.cached for v in cell.verdicts.values() if v.folder in kept) and not cell.is_growing
    ]
