"""Checks of one stage; each looks at one thing and names the key and what to write instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ediffi_core import tree
from ediffi_core.ema_length import mix_of
from ediffi_core.learning_rate import LearningRate
from ediffi_core.unet import PRESETS, FieldError
from pipelines.dag.plan import SINGLE
from pipelines.planning.findings import Findings, error, warning
from pipelines.planning.stage_networks import config_of
from pipelines.spec.pipeline import Spec
from pipelines.spec.stage import Baseline, Expert, Stage
from pipelines.spec.training import FINAL_DRAWS

MIN_DRAWS_PER_BIN = 4
"""A mean over fewer validation draws says little."""

MAX_EPOCHS = 100
"""Above this, a user hardly means to show every image so often."""

MAX_STEPS = 250

MIX_ERROR = 0.1
"""Above this error, an average made of snapshots is hardly that of the length asked for."""

SNAPSHOTS = (8, 16, 32, 64)
"""Numbers of snapshots to recommend, the fewest that are enough."""

GROWN = "experts that will grow"
"""Stands for the experts an adaptive stage may add, in messages."""

ATTENTION_KEYS = {
    "token_dim": ["cross_attention"],
    "head_channels": ["self_attention", "cross_attention"],
}
"""Network settings that only matter with attention → the attention settings that enable them."""


def _key(stage: str, *below: str) -> str:
    return ".".join(["stages", stage, *below])


def _trained(stage: Stage) -> dict[str, Expert]:
    """All experts a stage trains, single and baselines included; those that may grow as one."""
    more = dict(stage.continued)
    if stage.adaptive:
        more[GROWN] = stage.grown
    return {**stage.experts, **more}


# -- lengths -------------------------------------------------------------------------------------


def _shorter_than(stage: Stage, images: int) -> dict[str, int]:
    """Experts that train on fewer images than this → on how many."""
    return {n: e.images for n, e in _trained(stage).items() if e.images < images}


def _too_long(
    stage: str,
    key: str,
    images: int,
    lengths: Mapping[str, int],
    problem: str,
    divisor: int,
    at_least: int = 0,
) -> Findings:
    """Warn that a setting takes more images than some experts train on.

    Args:
        images: value of the setting at ``key``.
        lengths: the affected experts → images they train on; none, no warning.
        problem: what happens to these experts.
        divisor: the recommended setting is the shortest length divided by this.
        at_least: lower bound of the recommended setting.
    """
    if lengths:
        recommended = max(at_least, min(lengths.values()) // divisor)
        yield warning(
            stage,
            key,
            f"{', '.join(lengths)} {problem}: `{key}` is {images:,}; write at most {recommended:,}",
        )


def no_checkpoint(_: Spec, name: str, stage: Stage) -> Findings:
    """A stage of which no expert would save a checkpoint before its end.

    If some do, the others are short: a kill costs them no more than it may cost those.
    """
    every, key = stage.cadence.checkpoint_images, _key(name, "cadence", "checkpoint_images")
    problem = "would save no checkpoint before the end, and a kill would lose all progress"
    short = _shorter_than(stage, every + 1)
    if len(short) == len(_trained(stage)):
        yield from _too_long(name, key, every, short, problem, 4, at_least=stage.training.batch)


def slow_average(_: Spec, name: str, stage: Stage) -> Findings:
    """An EMA half-life longer than the training."""
    images = stage.training.ema_halflife_images
    key = _key(name, "training", "ema_halflife_images")
    problem = "would end with averaged weights (EMA) that are mostly the initial ones"
    yield from _too_long(name, key, images, _shorter_than(stage, images), problem, 4)


def no_snapshot(_: Spec, name: str, stage: Stage) -> Findings:
    """Experts whose only snapshot of averaged weights is the one at their end."""
    every, key = stage.training.snapshot_images, _key(name, "training", "snapshot_images")
    short = _shorter_than(stage, every) if every else {}
    problem, batch = "would keep one snapshot, at the end", stage.training.batch
    yield from _too_long(name, key, every or 0, short, problem, SNAPSHOTS[1], at_least=batch)


def averages_from_snapshots(_: Spec, name: str, stage: Stage) -> Findings:
    """An average to sample with that no snapshots make up, or only roughly."""
    length, training = stage.sampling.ema_length, stage.training
    if length is None:
        return
    key = _key(name, "sampling", "ema_length")
    every = _key(name, "training", "snapshot_images")
    shortest = min(expert.images for expert in _trained(stage).values())
    fitting = next(
        (n for n in SNAPSHOTS if _mix_error(stage, shortest // n, shortest, length) <= MIX_ERROR),
        None,
    )
    advice = max(training.batch, shortest // (fitting or SNAPSHOTS[-1]))
    if training.snapshot_images is None:
        text = f"`{key}` is an average that is made from snapshots; write `{every}: {advice}`"
        yield error(name, key, f"{text}, or remove it")
    elif (off := _mix_error(stage, training.snapshot_images, shortest, length)) > MIX_ERROR:
        lengths = _key(name, "training", "snapshot_lengths")
        remedy = f"`{every}: {advice}`" if fitting else f"{length:g} into `{lengths}`"
        yield warning(
            name,
            key,
            f"`{key}`: the snapshots of {shortest:,} images make up an average of length "
            f"{length:g} with an error of {off:.0%}; write {remedy}",
        )


def _mix_error(stage: Stage, every: int, images: int, length: float) -> float:
    """Error of the average of a length that is made of snapshots ``every`` so many images."""
    batch, every = stage.training.batch, max(every, images // SNAPSHOTS[-1])
    # A snapshot is written after the batch that completes its images.
    times = {-(-at // batch) * batch for at in range(every, images, every)} | {images}
    snapshots = [(at, given) for at in sorted(times) for given in stage.training.snapshot_lengths]
    return mix_of(snapshots, images, length).error


# -- learning rate -------------------------------------------------------------------------------

LengthsBySetting = dict[tuple[str, int], dict[str, int]]
"""(key, its value in images) → experts that are too short for it → images they train on."""


def _rate(stage: Stage, name: str, expert: Expert) -> LearningRate:
    """An expert's learning rate over the images that it follows its schedule for."""
    training = expert.over(stage.training)
    restarts = name in stage.continued and training.schedule != "constant"
    return training.rate(stage.experts[tree.ROOT].images if restarts else 0, expert.images)


def _rate_key(stage: str, name: str, expert: Expert, field: str) -> str:
    """Key of a training field that applies to an expert: its own, or else the stage's."""
    if field not in expert.overrides:
        return _key(stage, "training", field)
    path = {SINGLE: ("single",), GROWN: ("adaptive",)}.get(name)
    room = "baselines" if isinstance(expert, Baseline) else "experts"
    return _key(stage, *(path or (room, name)), field)


def long_warmup(_: Spec, name: str, stage: Stage) -> Findings:
    """A learning-rate warm-up that is longer than the training."""
    found: LengthsBySetting = {}
    for expert, how in _trained(stage).items():
        rate, key = _rate(stage, expert, how), _rate_key(name, expert, how, "warmup_images")
        if 0 < (length := rate.end - rate.begin) < rate.warmup_images:
            found.setdefault((key, rate.warmup_images), {})[expert] = length
    for (key, images), lengths in found.items():
        yield from _too_long(name, key, images, lengths, "would end before the warm-up does", 2)


def no_decay(_: Spec, name: str, stage: Stage) -> Findings:
    """A schedule under which the learning rate never falls."""
    found: LengthsBySetting = {}
    for expert, how in _trained(stage).items():
        rate = _rate(stage, expert, how)
        length = rate.end - rate.begin
        if rate.schedule == "inverse_sqrt":
            field, constant_images = "decay_images", rate.decay_images or 0
            never_falls = length <= constant_images
        else:
            field, constant_images = "warmup_images", rate.warmup_images
            never_falls = length == constant_images  # a longer one is reported by long_warmup
        if rate.schedule != "constant" and length and never_falls:
            key = _rate_key(name, expert, how, field)
            found.setdefault((key, constant_images), {})[expert] = length
    problem = "would end before the learning rate falls"
    for (key, images), lengths in found.items():
        yield from _too_long(name, key, images, lengths, problem, 2)


def unused_schedule_keys(_: Spec, name: str, stage: Stage) -> Findings:
    """Learning-rate settings that the chosen schedule does not read."""
    trained = _trained(stage)
    schedules = {e: how.over(stage.training).schedule for e, how in trained.items()}
    idle = [
        _rate_key(name, expert, how, "decay_images")
        for expert, how in trained.items()
        if "decay_images" in how.overrides and schedules[expert] != "inverse_sqrt"
    ]
    if stage.training.decay_images and "inverse_sqrt" not in schedules.values():
        idle.append(_key(name, "training", "decay_images"))
    for key in idle:
        schedule = key.removesuffix("decay_images") + "schedule"
        yield warning(
            name,
            key,
            f"`{key}` has no effect without `{schedule}: inverse_sqrt`; set that, or remove it",
        )
    for model, how in stage.continued.items():
        if how.warmup_images and schedules[model] == "constant":
            key = _rate_key(name, model, how, "warmup_images")
            schedule = key.removesuffix("warmup_images") + "schedule"
            called = "the single model" if model == SINGLE else f"baseline {model}"
            yield warning(
                name,
                key,
                f"`{key}` has no effect: at a constant rate, {called} continues from the root "
                f"without a new warm-up; remove it, or set `{schedule}`",
            )


# -- the rest ------------------------------------------------------------------------------------


def uneven_batch(_: Spec, name: str, stage: Stage) -> Findings:
    """A batch that workers or micro-batches do not divide."""
    batch, workers = stage.training.batch, stage.workers
    micro_batch = workers.micro_batch if isinstance(workers.micro_batch, int) else 1
    if batch % workers.count:
        yield warning(
            name,
            _key(name, "workers", "count"),
            f"a batch of {batch} is not a multiple of {workers.count} workers, so some wait for "
            f"others; set `{_key(name, 'workers', 'count')}` to a number that divides it",
        )
    elif batch // workers.count % micro_batch:
        yield warning(
            name,
            _key(name, "workers", "micro_batch"),
            f"a worker's {batch // workers.count} images are not a multiple of its micro-batch of "
            f"{micro_batch}; set `{_key(name, 'workers', 'micro_batch')}` to a number that divides "
            "them",
        )


def idle_expert(_: Spec, name: str, stage: Stage) -> Findings:
    """Experts that no evaluated model has in it, and that do not lead to one that does."""
    used = {*stage.ensemble, *(stage.experts if stage.adaptive else ()), *(stage.merge or ())}
    used |= {expert for slots in stage.routings.values() for expert in slots.values()}
    for expert in [name for name in used if tree.is_expert(name)]:
        while above := tree.parent(expert):
            used.add(expert := above)
    for expert in stage.experts:
        if expert not in used:
            yield warning(
                f"train/{name}/{expert}",
                _key(name, "experts"),
                "is not in the ensemble, nor an ancestor of an expert that is; add it to "
                f"`{_key(name, 'ensemble')}` or remove it from `{_key(name, 'experts')}`",
            )


def undegraded_low_res(spec: Spec, name: str, stage: Stage) -> Findings:
    """Super-resolution trained on perfect low-resolution images only."""
    d = stage.degrade
    degrades = d.blur_sigma or d.downscale > 1 or d.gaussian_noise or d.poisson_noise
    if name != next(iter(spec.stages)) and not (d.probability and degrades):
        yield warning(
            name,
            _key(name, "degrade"),
            "trains on clean low-resolution images, but will enlarge the imperfect ones that the "
            f"stage below draws; write `{_key(name, 'degrade', 'probability')}: 0.5`",
        )


def wide_residual(_: Spec, name: str, stage: Stage) -> Findings:
    """A residual network with the ``sigma_data`` of whole images."""
    if stage.network.residual and "sigma_data" not in stage.model_fields_set:
        key = _key(name, "sigma_data")
        yield warning(
            name,
            key,
            f"`{key}` is {stage.sigma_data}, the standard deviation of whole images, but with "
            f"`{_key(name, 'network', 'residual')}` the network predicts the difference from the "
            f"enlarged image, which varies less; write `{key}: 0.15`",
        )


def odd_steps(_: Spec, name: str, stage: Stage) -> Findings:
    """Too few sampling steps to draw anything, or more than help."""
    steps, key = stage.sampling.steps, _key(name, "sampling", "steps")
    if steps == 1:
        yield warning(name, key, f"one sampling step gives a blur; write `{key}: 10` or more")
    if steps > MAX_STEPS:
        yield warning(name, key, f"{steps} sampling steps are no better than 50; write `{key}: 50`")


def ineffective_sampling(_: Spec, name: str, stage: Stage) -> Findings:
    """Sampling settings without effect, and guidance for experts that the ensemble lacks."""
    sampling = stage.sampling
    for field, why in sampling.ineffective(resolution=stage.resolution, experts=stage.ensemble):
        key = _key(name, "sampling", field)
        yield warning(name, key, f"`{key}` has no effect {why}")
    key = _key(name, "sampling", "guidance", "experts")
    unknown = sorted(set(sampling.guidance.experts) - set(stage.ensemble))
    if unknown and not stage.adaptive:
        yield error(
            name, key, f"`{key}` names {unknown[0]}; the ensemble has {', '.join(stage.ensemble)}"
        )


def few_draws(_: Spec, name: str, stage: Stage) -> Findings:
    """Too few validation draws per noise bin, or more than there are."""
    draws, bins = stage.cadence.validate_draws, stage.cadence.validate_bins
    key = _key(name, "cadence", "validate_draws")
    if draws > FINAL_DRAWS and len(_trained(stage)) > 1:
        yield error(name, key, f"`{key}` may be at most {FINAL_DRAWS}, got {draws}")
    elif draws < MIN_DRAWS_PER_BIN * bins:
        yield warning(
            name,
            key,
            f"{draws} draws are few for {bins} bins of p(σ); write `{key}: {32 * bins}`",
        )


def network_fits(spec: Spec, name: str, stage: Stage) -> Findings:
    """Whether the network can be built for the training resolution, as the worker will check."""
    try:
        config = config_of(spec, name)
    except FieldError as refused:
        yield error(name, *_network_error(name, stage, refused))
        return
    key = _key(name, "workers", "activation_checkpointing")
    if wrong := [n for n in stage.workers.activation_checkpointing if n >= config.levels]:
        levels = ", ".join(map(str, range(config.levels)))
        yield error(name, key, f"`{key}` names level {wrong[0]}; the network has levels {levels}")


def _network_error(name: str, stage: Stage, wrong: FieldError) -> tuple[str, str]:
    """The key to change and the message.

    If the levels and attention of an unchanged preset do not fit the resolution, the key is that of
    the resolution.
    """
    preset, own = stage.network.preset, stage.network.chosen().keys()
    is_custom = own & {"layout", "channel_mult", "self_attention", "cross_attention"}
    if wrong.field != "resolution" and (is_custom or not wrong.field.endswith("attention")):
        key = _key(name, "network", wrong.field)
        return key, f"`{key}`: {wrong}"
    key = _key(name, "crop" if stage.crop else "resolution")
    hint = f"; preset {preset} is made for {PRESETS[preset].resolution}" if preset else ""
    return key, f"`{key}`: {wrong}{hint}"


def unused_network_keys(spec: Spec, name: str, stage: Stage) -> Findings:
    """Attention settings of a network without attention."""
    network, own = spec.network_of(name), stage.network.chosen()
    for field, kinds in ATTENTION_KEYS.items():
        if field in own and not any(network[kind] for kind in kinds):
            key = _key(name, "network", field)
            yield warning(
                name,
                key,
                f"`{key}` has no effect without {' or '.join(kinds)}; remove it, or set "
                f"`{_key(name, 'network', kinds[-1])}`",
            )


def many_epochs(spec: Spec, name: str, stage: Stage) -> Findings:
    """Training that repeats a small data set very often."""
    train = spec.data.train
    rows = train.rows if train.make else train.pairs
    most = max(_trained(stage).values(), key=lambda e: e.images).images
    if rows and most > MAX_EPOCHS * rows:
        key = _key(name, "experts")
        yield warning(
            name,
            key,
            f"trains on every image {most / rows:,.0f} times: {most:,} images, {rows:,} rows; "
            f"lower `images:` in `{key}`, or add data",
        )


def unused_boundaries(_: Spec, name: str, stage: Stage) -> Findings:
    """Boundaries of a stage that has no experts to place."""
    if stage.boundaries != "quantiles" and not stage.adaptive and set(stage.experts) == {tree.ROOT}:
        key = _key(name, "boundaries")
        yield warning(
            name,
            key,
            f"`{key}` has no effect on {tree.ROOT} alone; remove it, or add experts to "
            f"`{_key(name, 'experts')}`",
        )


STAGE_CHECKS: list[Callable[[Spec, str, Stage], Findings]] = [
    no_checkpoint,
    long_warmup,
    no_decay,
    unused_schedule_keys,
    slow_average,
    no_snapshot,
    averages_from_snapshots,
    uneven_batch,
    idle_expert,
    undegraded_low_res,
    wide_residual,
    odd_steps,
    ineffective_sampling,
    few_draws,
    network_fits,
    unused_network_keys,
    many_epochs,
    unused_boundaries,
]
