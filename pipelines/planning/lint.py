"""What is wrong or odd with a pipeline, found before anything runs.

Each check looks at one thing and says which node or stage, which key, and what to write instead.
Errors are what would end a run later, or never let it end; warnings are told. Of nodes that are
done already nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pipelines.dag.plan import Plan, Verdict
from pipelines.formatting import duration
from pipelines.planning.cost import stage_of
from pipelines.planning.costs import evaluation
from pipelines.planning.findings import Finding, Found, error, warning
from pipelines.planning.lint_stage import OF_STAGE
from pipelines.spec.cluster import EMBEDDING, Cluster
from pipelines.spec.pipeline import Spec

EVALUATION_S = 12 * 3600


def check(spec: Spec, plan: Plan) -> list[Finding]:
    """Everything that is found, errors first.

    Args:
        spec: as it was written; the plan's own may have grown experts.
    """
    todo = [v for v in plan.verdicts.values() if not v.cached]
    found = [f for one in OF_SPEC for f in one(spec, todo)]
    names = {stage_of(v.node) for v in todo if v.node.kind == "train"}
    for name, stage in spec.stages.items():
        if name in names:
            found += [f for each in OF_STAGE for f in each(spec, name, stage)]
    if not any(f.is_error for f in found):  # such as a network that cannot be
        found += long_evaluation(spec, todo)
    return sorted(found, key=lambda f: f.level)


def refuse(findings: Iterable[Finding]) -> None:
    """ValueError with the errors, if there are any."""
    if errors := [f"{f.node}: {f.text}" for f in findings if f.is_error]:
        raise ValueError("; ".join(errors))


def gpus_that_are_not_there(spec: Spec, todo: list[Verdict]) -> Found:
    if spec.cluster is None:
        return
    seen = set()
    for verdict in sorted(todo, key=lambda v: -v.node.gpus):
        node, stage = verdict.node, stage_of(verdict.node)
        gang = node.gpus
        if not gang or stage in seen:
            continue
        seen.add(stage)
        name = spec.cluster.group_of(stage)
        if name is None:
            there = ", ".join(spec.cluster.groups) or "none: add one to `cluster.groups`"
            yield error(
                node.id,
                f"cluster.stages.{stage}",
                f"asks for {gang:g} GPUs of no group; write one at `cluster.stages.{stage}`, of "
                f"{there}",
            )
        elif gang > spec.cluster.groups[name].count:
            key = "embedding" if stage == EMBEDDING else f"stages.{stage}.workers.count"
            yield error(
                node.id,
                key,
                f"needs {gang:g} GPUs at once, group {name} has {spec.cluster.groups[name].count}; "
                f"lower `{key}` or raise `cluster.groups.{name}.count`",
            )


def too_few_at_once(spec: Spec, todo: list[Verdict]) -> Found:
    """Stages on groups of their own could train at the same time, if the run were allowed to."""
    if spec.cluster is None:
        return
    needed: dict[str, dict[str, float]] = {"cpus": {}, "gpus": {}}
    for node in (v.node for v in todo if v.node.kind == "train" and v.node.gpus):
        group = spec.cluster.group_of(stage_of(node)) or ""
        for what, most in needed.items():
            most[group] = max(most.get(group, 0), node.resources[what])
    for what, allowed in (("cpus", spec.cpus), ("gpus", spec.gpus)):
        if (total := sum(needed[what].values())) > allowed:
            yield warning(
                "cluster",
                what,
                f"to train at the same time, as the plan reckons, {', '.join(needed[what])} need "
                f"more than `{what}:` allows, {allowed:g}; write `{what}: {total:g}`",
            )


def folder_on_many_machines(spec: Spec, todo: list[Verdict]) -> Found:
    groups = spec.cluster.groups if spec.cluster else {}
    machines = sum(-(-g.count // g.per_machine) for g in groups.values())
    if machines > 1 and "://" not in spec.storage:
        yield warning(
            "storage",
            "storage",
            f"{spec.storage} is a folder, and the cluster has {machines} machines: all must see "
            "the same one there; or write an address such as `storage: s3://bucket/store`",
        )


def long_evaluation(spec: Spec, todo: list[Verdict]) -> Found:
    for v in todo:
        if v.node.kind != "evaluate" or v.node.settings["stages"][-1]["name"] not in spec.stages:
            continue
        if v.node.gpus:
            continue
        cost = evaluation(spec, v.node, spec.cluster or Cluster())
        if cost.seconds > EVALUATION_S:
            yield warning(
                v.node.id,
                "evaluate.captions",
                f"draws {spec.evaluate.captions:,} pictures in about {duration(cost.seconds)} on "
                f"{v.node.cpus} CPUs; write `evaluate.gpus: 1`, or lower `evaluate.captions`",
            )


OF_SPEC: list[Callable[[Spec, list[Verdict]], Found]] = [
    gpus_that_are_not_there,
    too_few_at_once,
    folder_on_many_machines,
]
