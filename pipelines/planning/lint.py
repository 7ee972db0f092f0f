"""What is wrong or odd with a pipeline, found before anything runs.

Each check looks at one thing and says which node or stage, which key, and what to write instead.
Errors are what would end a run later, or never let it end; warnings are told. Of nodes that are
done already nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from ediffi_core import tree
from pipelines.plan import SINGLE, Plan, Verdict
from pipelines.planning.cluster import EMBEDDING
from pipelines.planning.costs import evaluation, gang_of, stage_of
from pipelines.planning.networks import config_of
from pipelines.planning.words import duration
from pipelines.spec import Expert, Spec, Stage

FINAL_DRAWS = 512
"""Of validation, which a child and its parent are compared on
(:data:`pipelines.training.validation.FINAL_DRAWS`, whose import takes seconds)."""

DRAWS_A_BIN = 4
"""A mean of fewer says little."""

EPOCHS = 100
"""More often a picture is hardly meant to be seen."""

EVALUATION_S = 12 * 3600

MANY_STEPS = 250

GROWN = "what grows"


@dataclass(frozen=True, kw_only=True)
class Finding:
    level: Literal["error", "warning"]
    node: str
    """Or the stage, of all its nodes."""

    key: str
    """Of the spec."""

    text: str

    @property
    def is_error(self) -> bool:
        return self.level == "error"

    def __str__(self) -> str:
        return f"{self.level}: {self.node}: {self.text}"


Found = Iterator[Finding]


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


def _error(node: str, key: str, text: str) -> Finding:
    return Finding(level="error", node=node, key=key, text=text)


def _warning(node: str, key: str, text: str) -> Finding:
    return Finding(level="warning", node=node, key=key, text=text)


def _key(stage: str, *below: str) -> str:
    return ".".join(["stages", stage, *below])


def _trained(stage: Stage) -> dict[str, Expert]:
    """Experts and how far each is trained from its beginning; those that may yet grow as one."""
    more = {SINGLE: stage.single} if stage.single else {}
    if stage.adaptive:
        more[GROWN] = Expert(images=stage.adaptive.images)
    return {**stage.experts, **more}


def _shorter(stage: Stage, images: int) -> dict[str, int]:
    """Experts that train on fewer images than this."""
    return {n: e.images for n, e in _trained(stage).items() if e.images < images}


# -- one stage -------------------------------------------------------------------------------------


def no_checkpoint(_: Spec, name: str, stage: Stage) -> Found:
    every, key = stage.cadence.checkpoint_images, _key(name, "cadence", "checkpoint_images")
    if short := _shorter(stage, every + 1):
        yield _warning(
            name,
            key,
            f"{_names(short)} would save no checkpoint before the end, and a kill costs all: "
            f"`{key}` is {every:,}; write {max(stage.training.batch, min(short.values()) // 4):,}",
        )


def long_warmup(_: Spec, name: str, stage: Stage) -> Found:
    images, key = stage.training.warmup_images, _key(name, "training", "warmup_images")
    if short := _shorter(stage, images):
        yield _warning(
            name,
            key,
            f"{_names(short)} would end before the warm-up does: `{key}` is {images:,}; write at "
            f"most {min(short.values()) // 2:,}",
        )


def slow_average(_: Spec, name: str, stage: Stage) -> Found:
    images = stage.training.ema_halflife_images
    key = _key(name, "training", "ema_halflife_images")
    if short := _shorter(stage, images):
        yield _warning(
            name,
            key,
            f"of {_names(short)} the average would be mostly what it started from: `{key}` is "
            f"{images:,}; write at most {min(short.values()) // 4:,}",
        )


def no_snapshot(_: Spec, name: str, stage: Stage) -> Found:
    every, key = stage.training.snapshot_images, _key(name, "training", "snapshot_images")
    if every and (short := _shorter(stage, every)):
        yield _warning(
            name,
            key,
            f"{_names(short)} would keep no snapshot: `{key}` is {every:,}; write at most "
            f"{min(short.values()):,}",
        )


def uneven_batch(_: Spec, name: str, stage: Stage) -> Found:
    batch, workers = stage.training.batch, stage.workers
    at_once = workers.micro_batch if isinstance(workers.micro_batch, int) else 1
    if batch % workers.count:
        yield _warning(
            name,
            _key(name, "workers", "count"),
            f"a batch of {batch} is not shared evenly by {workers.count} workers, who wait for the "
            f"slowest; write a `{_key(name, 'workers', 'count')}` that divides it",
        )
    elif batch // workers.count % at_once:
        yield _warning(
            name,
            _key(name, "workers", "micro_batch"),
            f"a worker's {batch // workers.count} images are no multiple of its micro-batch; write "
            f"a `{_key(name, 'workers', 'micro_batch')}` that divides them instead of {at_once}",
        )


def idle_expert(_: Spec, name: str, stage: Stage) -> Found:
    used = {*stage.ensemble, *(stage.experts if stage.adaptive else ())}
    for expert in stage.ensemble:
        while above := tree.parent(expert):
            used.add(expert := above)
    for expert in stage.experts:
        if expert not in used:
            yield _warning(
                f"train/{name}/{expert}",
                _key(name, "experts"),
                "is in no ensemble and parent of none that is; add it to "
                f"`{_key(name, 'ensemble')}` or remove it from `{_key(name, 'experts')}`",
            )


def clean_small_pictures(spec: Spec, name: str, stage: Stage) -> Found:
    d = stage.degrade
    spoilt = d.blur_sigma or d.shrink > 1 or d.gaussian_noise or d.poisson_noise
    if name != next(iter(spec.stages)) and not (d.probability and spoilt):
        yield _warning(
            name,
            _key(name, "degrade"),
            "trains on small pictures without a fault, and will meet those of the stage below; "
            f"write `{_key(name, 'degrade', 'probability')}: 0.5`",
        )


def odd_steps(_: Spec, name: str, stage: Stage) -> Found:
    steps, key = stage.sampling.steps, _key(name, "sampling", "steps")
    if steps == 1:
        yield _warning(name, key, f"one step draws a blur; write `{key}: 10` or more")
    if steps > MANY_STEPS:
        yield _warning(name, key, f"{steps} steps gain nothing over 50; write `{key}: 50`")


def few_draws(_: Spec, name: str, stage: Stage) -> Found:
    draws, bins = stage.cadence.validate_draws, stage.cadence.validate_bins
    key = _key(name, "cadence", "validate_draws")
    if draws > FINAL_DRAWS and len(_trained(stage)) > 1:
        yield _error(name, key, f"`{key}` may be {FINAL_DRAWS} at most, got {draws}")
    elif draws < DRAWS_A_BIN * bins:
        yield _warning(
            name,
            key,
            f"{draws} draws are few for {bins} shares of p(σ); write `{key}: {32 * bins}`",
        )


def network_fits(spec: Spec, name: str, stage: Stage) -> Found:
    """Attention and levels at the side that is trained on, as the worker will check them."""
    try:
        config = config_of(spec, name)
    except ValueError as error:
        yield _error(name, _key(name, "resolution"), f"`{_key(name, 'resolution')}`: {error}")
        return
    key = _key(name, "workers", "recompute")
    if wrong := [n for n in stage.workers.recompute if n >= config.levels]:
        levels = ", ".join(map(str, range(config.levels)))
        yield _error(name, key, f"`{key}` names level {wrong[0]}; there are {levels}")


def many_epochs(spec: Spec, name: str, stage: Stage) -> Found:
    train = spec.data.train
    rows = train.rows if train.make else train.pairs
    most = max(_trained(stage).values(), key=lambda e: e.images).images
    if rows and most > EPOCHS * rows:
        key = _key(name, "experts")
        yield _warning(
            name,
            key,
            f"sees every picture {most / rows:,.0f} times: {most:,} images of {rows:,} rows; lower "
            f"`images:` in `{key}`, or train on more",
        )


def _names(experts: Iterable[str]) -> str:
    return ", ".join(experts)


OF_STAGE: list[Callable[[Spec, str, Stage], Found]] = [
    no_checkpoint,
    long_warmup,
    slow_average,
    no_snapshot,
    uneven_batch,
    idle_expert,
    clean_small_pictures,
    odd_steps,
    few_draws,
    network_fits,
    many_epochs,
]


# -- the whole -------------------------------------------------------------------------------------


def gpus_that_are_not_there(spec: Spec, todo: list[Verdict]) -> Found:
    if spec.cluster is None:
        return
    seen = set()
    for verdict in todo:
        node, stage = verdict.node, stage_of(verdict.node)
        gang = gang_of(node)
        if not gang or stage in seen:
            continue
        seen.add(stage)
        name = spec.cluster.group_of(stage)
        if name is None:
            there = ", ".join(spec.cluster.groups) or "none: add one to `cluster.groups`"
            yield _error(
                node.id,
                f"cluster.stages.{stage}",
                f"asks for {gang:g} GPUs of no group; write one at `cluster.stages.{stage}`, of "
                f"{there}",
            )
        elif gang > spec.cluster.groups[name].count:
            key = "embedding" if stage == EMBEDDING else _key(stage, "workers", "count")
            yield _error(
                node.id,
                key,
                f"needs {gang:g} GPUs at once, group {name} has {spec.cluster.groups[name].count}; "
                f"lower `{key}` or raise `cluster.groups.{name}.count`",
            )


def too_few_cpus(spec: Spec, todo: list[Verdict]) -> Found:
    """Stages with GPUs of their own could work at once, if there were a CPU for each worker."""
    if spec.cluster is None:
        return
    needed: dict[str, int] = {}
    for v in todo:
        if v.node.kind == "train" and gang_of(v.node):
            group = spec.cluster.group_of(stage_of(v.node)) or ""
            needed[group] = max(needed.get(group, 0), v.node.cpus)
    total = sum(needed.values())
    if total > spec.cpus:
        yield _warning(
            "cluster",
            "cpus",
            f"workers on {_names(needed)} need {total} CPUs to train at the same time, which the "
            f"plan reckons with; `cpus:` is {spec.cpus}: write {total}",
        )


def folder_on_many_machines(spec: Spec, todo: list[Verdict]) -> Found:
    groups = spec.cluster.groups if spec.cluster else {}
    machines = sum(-(-g.count // g.per_machine) for g in groups.values())
    if machines > 1 and "://" not in spec.storage:
        yield _warning(
            "storage",
            "storage",
            f"{spec.storage} is a folder, and the cluster has {machines} machines: all must see "
            "the same one there; or write an address such as `storage: s3://bucket/store`",
        )


def long_evaluation(spec: Spec, todo: list[Verdict]) -> Found:
    for v in todo:
        if v.node.kind != "evaluate" or v.node.settings["stages"][-1]["name"] not in spec.stages:
            continue
        cost = evaluation(spec, v.node)
        if cost.seconds > EVALUATION_S:
            yield _warning(
                v.node.id,
                "evaluate.captions",
                f"draws {spec.evaluate.captions:,} pictures in about {duration(cost.seconds)} on "
                f"{v.node.cpus} CPUs; lower `evaluate.captions` or raise `evaluate.cpus`",
            )


OF_SPEC: list[Callable[[Spec, list[Verdict]], Found]] = [
    gpus_that_are_not_there,
    too_few_cpus,
    folder_on_many_machines,
]
