"""Checks of one stage: each looks at one thing, and says which key and what to write instead."""

from __future__ import annotations

from collections.abc import Callable

from ediffi_core import tree
from ediffi_core.learning_rate import LearningRate
from ediffi_core.unet import PRESETS, FieldError
from pipelines.dag.plan import SINGLE
from pipelines.planning.findings import Found, error, warning
from pipelines.planning.networks import config_of
from pipelines.spec.pipeline import Spec
from pipelines.spec.stage import Expert, Stage
from pipelines.spec.training import FINAL_DRAWS

DRAWS_A_BIN = 4
"""A mean of fewer says little."""

EPOCHS = 100
"""More often a picture is hardly meant to be seen."""

MANY_STEPS = 250

GROWN = "what grows"

ATTENTION_KEYS = {
    "token_dim": ["cross_attention"],
    "head_channels": ["self_attention", "cross_attention"],
}
"""Of a network, and the attention that they are of."""


def _key(stage: str, *below: str) -> str:
    return ".".join(["stages", stage, *below])


def _trained(stage: Stage) -> dict[str, Expert]:
    """Experts and how far each is trained from its beginning; those that may yet grow as one."""
    more = {SINGLE: stage.single} if stage.single else {}
    if stage.adaptive:
        more[GROWN] = stage.grown
    return {**stage.experts, **more}


def _shorter(stage: Stage, images: int) -> dict[str, int]:
    """Experts that train on fewer images than this."""
    return {n: e.images for n, e in _trained(stage).items() if e.images < images}


def no_checkpoint(_: Spec, name: str, stage: Stage) -> Found:
    every, key = stage.cadence.checkpoint_images, _key(name, "cadence", "checkpoint_images")
    if short := _shorter(stage, every + 1):
        yield warning(
            name,
            key,
            f"{', '.join(short)} would save no checkpoint before the end, and a kill costs all: "
            f"`{key}` is {every:,}; write {max(stage.training.batch, min(short.values()) // 4):,}",
        )


Short = dict[tuple[str, int], dict[str, int]]
"""A key and its images → experts that train on fewer, and on how many."""


def _rate(stage: Stage, name: str, expert: Expert) -> LearningRate:
    """An expert's learning rate, over the images that it follows its schedule for."""
    training = expert.over(stage.training)
    is_anew = name == SINGLE and training.schedule != "constant"
    return training.rate(stage.experts[tree.ROOT].images if is_anew else 0, expert.images)


def _rate_key(stage: str, name: str, expert: Expert, field: str) -> str:
    """Where a field of an expert's training is written: with the expert, or for the stage."""
    if field not in expert.overrides:
        return _key(stage, "training", field)
    place = {SINGLE: ("single",), GROWN: ("adaptive",)}.get(name, ("experts", name))
    return _key(stage, *place, field)


def long_warmup(_: Spec, name: str, stage: Stage) -> Found:
    short: Short = {}
    for expert, how in _trained(stage).items():
        rate, key = _rate(stage, expert, how), _rate_key(name, expert, how, "warmup_images")
        if 0 < (length := rate.end - rate.begin) < rate.warmup_images:
            short.setdefault((key, rate.warmup_images), {})[expert] = length
    yield from _told(name, short, "the warm-up does")


def no_decay(_: Spec, name: str, stage: Stage) -> Found:
    """A schedule under which the learning rate never falls."""
    short: Short = {}
    for expert, how in _trained(stage).items():
        rate = _rate(stage, expert, how)
        length = rate.end - rate.begin
        if rate.schedule == "inverse_sqrt":
            field, stays = "decay_images", rate.decay_images or 0
            is_late = length <= stays
        else:
            field, stays = "warmup_images", rate.warmup_images
            is_late = length == stays  # a longer one is told as a long warm-up
        if rate.schedule != "constant" and length and is_late:
            key = _rate_key(name, expert, how, field)
            short.setdefault((key, stays), {})[expert] = length
    yield from _told(name, short, "the learning rate falls")


def _told(name: str, short: Short, what: str) -> Found:
    for (key, images), lengths in short.items():
        yield warning(
            name,
            key,
            f"{', '.join(lengths)} would end before {what}: `{key}` is {images:,}; write at most "
            f"{min(lengths.values()) // 2:,}",
        )


def unused_schedule_keys(_: Spec, name: str, stage: Stage) -> Found:
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
            f"`{key}` has no effect without `{schedule}: inverse_sqrt`; write that, or remove it",
        )
    if stage.single and stage.single.warmup_images and schedules[SINGLE] == "constant":
        key = _key(name, "single", "warmup_images")
        yield warning(
            name,
            key,
            f"`{key}` has no effect: a constant rate goes on from the root's; remove it, or write "
            f"`{_key(name, 'single', 'schedule')}`",
        )


def slow_average(_: Spec, name: str, stage: Stage) -> Found:
    images = stage.training.ema_halflife_images
    key = _key(name, "training", "ema_halflife_images")
    if short := _shorter(stage, images):
        yield warning(
            name,
            key,
            f"of {', '.join(short)} the average would be mostly what it started from: `{key}` is "
            f"{images:,}; write at most {min(short.values()) // 4:,}",
        )


def no_snapshot(_: Spec, name: str, stage: Stage) -> Found:
    every, key = stage.training.snapshot_images, _key(name, "training", "snapshot_images")
    if every and (short := _shorter(stage, every)):
        yield warning(
            name,
            key,
            f"{', '.join(short)} would keep no snapshot: `{key}` is {every:,}; write at most "
            f"{min(short.values()):,}",
        )


def uneven_batch(_: Spec, name: str, stage: Stage) -> Found:
    batch, workers = stage.training.batch, stage.workers
    at_once = workers.micro_batch if isinstance(workers.micro_batch, int) else 1
    if batch % workers.count:
        yield warning(
            name,
            _key(name, "workers", "count"),
            f"a batch of {batch} is not shared evenly by {workers.count} workers, who wait for the "
            f"slowest; write a `{_key(name, 'workers', 'count')}` that divides it",
        )
    elif batch // workers.count % at_once:
        yield warning(
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
            yield warning(
                f"train/{name}/{expert}",
                _key(name, "experts"),
                "is in no ensemble and parent of none that is; add it to "
                f"`{_key(name, 'ensemble')}` or remove it from `{_key(name, 'experts')}`",
            )


def clean_small_pictures(spec: Spec, name: str, stage: Stage) -> Found:
    d = stage.degrade
    spoilt = d.blur_sigma or d.downscale > 1 or d.gaussian_noise or d.poisson_noise
    if name != next(iter(spec.stages)) and not (d.probability and spoilt):
        yield warning(
            name,
            _key(name, "degrade"),
            "trains on small pictures without a fault, and will meet those of the stage below; "
            f"write `{_key(name, 'degrade', 'probability')}: 0.5`",
        )


def wide_residual(_: Spec, name: str, stage: Stage) -> Found:
    if stage.network.residual and "sigma_data" not in stage.model_fields_set:
        key = _key(name, "sigma_data")
        yield warning(
            name,
            key,
            f"`{key}` is {stage.sigma_data}, which pictures have; their differences from enlarged "
            f"ones have less, which is what `{_key(name, 'network', 'residual')}` predicts; write "
            f"`{key}: 0.15`",
        )


def odd_steps(_: Spec, name: str, stage: Stage) -> Found:
    steps, key = stage.sampling.steps, _key(name, "sampling", "steps")
    if steps == 1:
        yield warning(name, key, f"one step draws a blur; write `{key}: 10` or more")
    if steps > MANY_STEPS:
        yield warning(name, key, f"{steps} steps gain nothing over 50; write `{key}: 50`")


def few_draws(_: Spec, name: str, stage: Stage) -> Found:
    draws, bins = stage.cadence.validate_draws, stage.cadence.validate_bins
    key = _key(name, "cadence", "validate_draws")
    if draws > FINAL_DRAWS and len(_trained(stage)) > 1:
        yield error(name, key, f"`{key}` may be {FINAL_DRAWS} at most, got {draws}")
    elif draws < DRAWS_A_BIN * bins:
        yield warning(
            name,
            key,
            f"{draws} draws are few for {bins} shares of p(σ); write `{key}: {32 * bins}`",
        )


def network_fits(spec: Spec, name: str, stage: Stage) -> Found:
    """That the network can be built for the side that is trained on, as the worker will check."""
    try:
        config = config_of(spec, name)
    except FieldError as refused:
        yield error(name, *_network_error(name, stage, refused))
        return
    key = _key(name, "workers", "activation_checkpointing")
    if wrong := [n for n in stage.workers.activation_checkpointing if n >= config.levels]:
        levels = ", ".join(map(str, range(config.levels)))
        yield error(name, key, f"`{key}` names level {wrong[0]}; there are {levels}")


def _network_error(name: str, stage: Stage, wrong: FieldError) -> tuple[str, str]:
    """The key to change, and what is told of it: that of the side, where it does not suit a preset
    whose levels and attention are its own."""
    preset, own = stage.network.preset, stage.network.chosen().keys()
    is_shaped = own & {"layout", "channel_mult", "self_attention", "cross_attention"}
    if wrong.field != "resolution" and (is_shaped or not wrong.field.endswith("attention")):
        key = _key(name, "network", wrong.field)
        return key, f"`{key}`: {wrong}"
    key = _key(name, "crop" if stage.crop else "resolution")
    hint = f"; preset {preset} is made for {PRESETS[preset].resolution}" if preset else ""
    return key, f"`{key}`: {wrong}{hint}"


def unused_network_keys(spec: Spec, name: str, stage: Stage) -> Found:
    """Keys that say how attention is done, of a network that has none."""
    network, own = spec.network_of(name), stage.network.chosen()
    for field, kinds in ATTENTION_KEYS.items():
        if field in own and not any(network[kind] for kind in kinds):
            key = _key(name, "network", field)
            yield warning(
                name,
                key,
                f"`{key}` has no effect without {' or '.join(kinds)}; remove it, or write "
                f"`{_key(name, 'network', kinds[-1])}`",
            )


def many_epochs(spec: Spec, name: str, stage: Stage) -> Found:
    train = spec.data.train
    rows = train.rows if train.make else train.pairs
    most = max(_trained(stage).values(), key=lambda e: e.images).images
    if rows and most > EPOCHS * rows:
        key = _key(name, "experts")
        yield warning(
            name,
            key,
            f"sees every picture {most / rows:,.0f} times: {most:,} images of {rows:,} rows; lower "
            f"`images:` in `{key}`, or train on more",
        )


OF_STAGE: list[Callable[[Spec, str, Stage], Found]] = [
    no_checkpoint,
    long_warmup,
    no_decay,
    unused_schedule_keys,
    slow_average,
    no_snapshot,
    uneven_batch,
    idle_expert,
    clean_small_pictures,
    wide_residual,
    odd_steps,
    few_draws,
    network_fits,
    unused_network_keys,
    many_epochs,
]
