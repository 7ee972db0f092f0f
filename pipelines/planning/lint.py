"""Checks of a pipeline before anything runs.

Each check looks at one thing and names the node or stage, the key, and what to write instead.
Errors would make the run fail later, or never end; warnings are only shown. Nodes that are already
done are not checked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from pipelines.dag.plan import Plan, Verdict, images_to_train
from pipelines.formatting import duration, number
from pipelines.planning.cost import stage_of
from pipelines.planning.evaluation_cost import evaluation, evaluation_flops
from pipelines.planning.findings import Finding, Findings, error, warning
from pipelines.planning.lint_measures import check_measures
from pipelines.planning.lint_stage import STAGE_CHECKS
from pipelines.planning.training_cost import measured_speeds, training
from pipelines.spec.cluster import EMBEDDING, Cluster
from pipelines.spec.data import FASHION_SIDE
from pipelines.spec.notify import SMTP_PASSWORD
from pipelines.spec.pipeline import Spec

MAX_CPU_S = 12 * 3600
"""A stage's training, or an evaluation, that takes longer than this on CPUs is reported."""


def check(spec: Spec, plan: Plan) -> list[Finding]:
    """Run all checks; errors come first.

    Args:
        spec: as the user wrote it; the plan's own copy may contain experts that grew.
        plan: says which nodes are still to run.
    """
    todo = [v for v in plan.verdicts.values() if not v.cached]
    found = [f for one in SPEC_CHECKS for f in one(spec, todo)]
    names = {stage_of(v.node) for v in todo if v.node.kind == "train"}
    for name, stage in spec.stages.items():
        if name in names:
            found += [f for each in STAGE_CHECKS for f in each(spec, name, stage)]
    if not any(f.is_error for f in found):  # it needs networks that can be built
        found += [*slow_training(spec, plan), *slow_evaluation(spec, todo)]
    return sorted(found, key=lambda f: f.level)


def raise_errors(findings: Iterable[Finding]) -> None:
    """Raise ValueError with all errors in one line, if there are any."""
    if errors := [f"{f.node}: {f.text}" for f in findings if f.is_error]:
        raise ValueError("; ".join(errors))


def missing_gpus(spec: Spec, todo: list[Verdict]) -> Findings:
    """Nodes that need GPUs of no group, or more than their group has."""
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
            groups = ", ".join(spec.cluster.groups) or "none yet, add one to `cluster.groups`"
            yield error(
                node.id,
                f"cluster.stages.{stage}",
                f"needs {gang:g} GPUs, but no group is named for {stage}; name one in "
                f"`cluster.stages.{stage}` (groups: {groups})",
            )
        elif gang > spec.cluster.groups[name].count:
            key = "embedding" if stage == EMBEDDING else f"stages.{stage}.workers.count"
            key = "evaluate.workers" if node.kind in ("evaluate", "features") else key
            yield error(
                node.id,
                key,
                f"needs {gang:g} GPUs at once, but group {name} has "
                f"{spec.cluster.groups[name].count}; "
                f"lower `{key}` or raise `cluster.groups.{name}.count`",
            )


def limits_parallel_training(spec: Spec, todo: list[Verdict]) -> Findings:
    """``cpus`` or ``gpus`` too low for stages on different groups to train at the same time."""
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
                f"the plan assumes that {', '.join(needed[what])} train at the same time and "
                f"need {total:g} {what[:-1].upper()}s, but `{what}:` is {allowed:g}; write "
                f"`{what}: {total:g}`",
            )


def shared_folder(spec: Spec, todo: list[Verdict]) -> Findings:
    """A folder as the store of a cluster of several machines."""
    groups = spec.cluster.groups if spec.cluster else {}
    machines = sum(-(-g.count // g.per_machine) for g in groups.values())
    if machines > 1 and "://" not in spec.storage:
        yield warning(
            "storage",
            "storage",
            f"{spec.storage} is a folder, and the cluster has {machines} machines: mount the same "
            "folder there on all of them, or use a bucket, such as `storage: s3://bucket/store`",
        )


def slow_evaluation(spec: Spec, todo: list[Verdict]) -> Findings:
    """Evaluations that take very long without a GPU."""
    for v in todo:
        if v.node.kind != "evaluate" or v.node.settings["stages"][-1]["name"] not in spec.stages:
            continue
        if v.node.gpus:
            continue
        cost = evaluation(spec, v.node, spec.cluster or Cluster())
        if cost.seconds <= MAX_CPU_S:
            continue
        parts, losses = evaluation_flops(spec, v.node), v.node.settings["losses"]
        key, what = "evaluate.captions", f"draws {spec.evaluate.captions:,} images"
        if parts.losses > parts.images:
            draws = losses["draws"] * len(losses["experts"])
            key, what = "evaluate.losses.draws", f"measures losses on {draws:,} draws"
        cpus = f"{v.node.cpus} CPU" + ("" if v.node.cpus == 1 else "s")
        gpu = "`evaluate.gpus: 1`" if spec.gpus else "`gpus: 1` and `evaluate.gpus: 1`"
        yield warning(
            v.node.id,
            key,
            f"{what}, which takes {cpus} about {duration(cost.seconds)}; write {gpu} on a machine "
            f"with a GPU, or lower `{key}`",
        )


def slow_training(spec: Spec, plan: Plan) -> Findings:
    """Stages whose training takes very long without a GPU; a cluster's costs are shown anyway."""
    if spec.cluster is not None:
        return
    speeds, work, longest = measured_speeds(plan), dict[str, float](), dict[str, float]()
    for verdict in plan.verdicts.values():
        node, stage = verdict.node, stage_of(verdict.node)
        if node.kind != "train" or verdict.cached or node.gpus or stage not in spec.stages:
            continue
        images = images_to_train(plan, node) or 0
        seconds = training(plan.spec, node, images, Cluster(), speeds).seconds
        work[stage] = work.get(stage, 0) + seconds * node.cpus / spec.cpus
        longest[stage] = max(longest.get(stage, 0), seconds)
    for stage, shared in work.items():
        seconds = max(shared, longest[stage])
        if seconds > MAX_CPU_S:
            days = seconds / 86400
            time = f"{number(days)} days" if days >= 2 else duration(seconds)
            cpus = f"{spec.cpus:g} CPU" + ("" if spec.cpus == 1 else "s")
            key = f"stages.{stage}.workers.gpus"
            yield warning(
                stage,
                key,
                f"training takes about {time} on {cpus}; set `{key}` on a machine with a GPU, or "
                f"a smaller `stages.{stage}.network.preset`",
            )


def few_validation_pairs(spec: Spec, todo: list[Verdict]) -> Findings:
    """More captions to evaluate than there are validation pairs."""
    validation, captions = spec.data.validation, spec.evaluate.captions
    pairs = validation.rows if validation.make else validation.pairs
    if pairs and captions > pairs and any(v.node.kind == "evaluate" for v in todo):
        yield warning(
            "evaluate",
            "evaluate.captions",
            f"`evaluate.captions` is {captions:,}, but there are {pairs:,} validation pairs, so no "
            f"more than {pairs:,} are drawn; write `evaluate.captions: {pairs}`, or add validation "
            "data",
        )


def small_pictures(spec: Spec, todo: list[Verdict]) -> Findings:
    """Stages with a higher resolution than the pictures of Fashion-MNIST."""
    if "fashion-mnist" not in (spec.data.train.make, spec.data.validation.make):
        return
    for name, stage in spec.stages.items():
        if stage.resolution > FASHION_SIDE:
            yield error(
                name,
                f"stages.{name}.resolution",
                f"`stages.{name}.resolution` is {stage.resolution}, but the pictures of "
                f"fashion-mnist are {FASHION_SIDE}×{FASHION_SIDE}; remove the stage, or write "
                f"{FASHION_SIDE} or less",
            )


def mail_without_password(spec: Spec, todo: list[Verdict]) -> Findings:
    """An e-mail account whose password is not in this environment."""
    email = spec.notify.email
    if todo and email and email.user and not os.environ.get(SMTP_PASSWORD):
        yield warning(
            spec.name,
            "notify.email.user",
            f"`notify.email.user` has no password here: set {SMTP_PASSWORD} in the environment of "
            "the run, or nobody is sent an e-mail",
        )


SPEC_CHECKS: list[Callable[[Spec, list[Verdict]], Findings]] = [
    missing_gpus,
    limits_parallel_training,
    shared_folder,
    few_validation_pairs,
    check_measures,
    small_pictures,
    mail_without_password,
]
