"""Read the results of a study's cells from the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.dag.plan import Plan, Verdict, images_to_train
from pipelines.evaluation import scores
from pipelines.steps.ensemble_weights import located
from pipelines.store.artifacts import Store
from pipelines.studies.cells import Opened
from pipelines.studies.results import Cell, Group, Results

MEASUREMENTS = {"gradients": "gradients.json", "probe": "probe.json"}
"""Kind of a node that measures something else than scores → the file that it writes."""


def read(opened: Opened, made: Plan, store: Store) -> Results:
    """The results of all cells, as far as they are in the store.

    Args:
        made: the study's plan, made after the last run.

    Raises:
        ValueError: An evaluation has lost a file.
    """
    known: dict[str, Group] = {}
    cells = []
    for cell in opened.cells:
        plan = made.cells[cell.name]
        found = Cell(
            name=cell.name,
            at=dict(cell.at),
            groups=dict(_groups(opened, plan, store, known)),
            measurements=dict(_measurements(opened, plan, store)),
        )
        if found.groups or found.measurements:
            cells.append(found)
    return Results(study=opened.study, cells=tuple(cells))


def _groups(
    opened: Opened, plan: Plan, store: Store, known: dict[str, Group]
) -> Iterator[tuple[str, Group]]:
    """Evaluated group → its results; ``known`` holds those that other cells share, by folder."""
    stage = opened.study.stage
    for verdict in plan.verdicts.values():
        node = verdict.node
        if node.kind != "evaluate" or verdict.manifest is None:
            continue
        of, _, group = node.name.partition("/")
        if of != stage or "strange" in verdict.manifest["info"]:
            continue
        if verdict.folder not in known:
            known[verdict.folder] = _group(plan, verdict, stage, store)
        yield group, known[verdict.folder]


def _group(plan: Plan, verdict: Verdict, stage: str, store: Store) -> Group:
    assert verdict.manifest is not None
    slots = verdict.node.settings["stages"][-1]["experts"]
    experts = _experts(plan, verdict, stage)
    parameters = {
        v.fingerprint: int(v.manifest["info"]["parameters"])
        for v in experts.values()
        if v.manifest is not None
    }
    trained = list(_trainings(plan, verdict, {v.fingerprint for v in experts.values()}))
    return Group(
        metrics=verdict.manifest["metrics"],
        scores={n: v.numpy() for n, v in scores.read(store, verdict.folder).items()},
        images=sum(images_to_train(plan, v.node) or 0 for v in trained),
        parameters=sum(parameters.values()),
        active_parameters=max(parameters.values(), default=0),
        training_seconds=sum(v.manifest["seconds"] for v in trained if v.manifest),
        intervals={name: (low, high) for name, (low, high) in slots.items()},
        pictures=f"{verdict.folder}/samples.png",
    )


def _experts(plan: Plan, verdict: Verdict, stage: str) -> dict[str, Verdict]:
    """Slot → the node whose weights it has."""
    node = verdict.node
    inputs = {role: plan.verdicts[i] for role, i in node.inputs.items()}
    manifests = {role: v.manifest for role, v in inputs.items() if v.manifest is not None}
    folders = {role: v.folder for role, v in inputs.items()}
    by_fingerprint = {v.fingerprint: v for v in inputs.values()}
    last = [node.settings["stages"][-1]]
    return {
        slot.removeprefix(f"{stage}/"): by_fingerprint[of["fingerprint"]]
        for slot, of in located(manifests, last, folders).items()
    }


def _trainings(plan: Plan, verdict: Verdict, used: set[str]) -> Iterator[Verdict]:
    """The trainings of the experts that are used and of all their ancestors, each once."""
    todo = [i for i in verdict.node.inputs.values() if plan.verdicts[i].fingerprint in used]
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        one = plan.verdicts[name]
        if one.node.kind == "train":
            yield one
            todo += [i for role, i in one.node.inputs.items() if role == "parent"]
        elif one.node.kind == "merge":
            todo += list(one.node.inputs.values())


def _measurements(opened: Opened, plan: Plan, store: Store) -> Iterator[tuple[str, Any]]:
    """``gradients/root``, ``probe/single/seconds`` → what the node stored."""
    stage = opened.study.stage
    for verdict in plan.verdicts.values():
        node = verdict.node
        file = MEASUREMENTS.get(node.kind)
        of, _, rest = node.name.partition("/")
        if file is None or verdict.manifest is None or of != stage:
            continue
        found: Mapping[str, Any] | None = store.read_json(f"{verdict.folder}/{file}")
        if found is None:
            raise ValueError(
                f"{store.full(verdict.folder)} has lost its {file}; remove the folder and run again"
            )
        yield f"{node.kind}/{rest}", found
