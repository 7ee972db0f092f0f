"""The options of ``ediffi sample`` as a request, on their own or on top of a picture's settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.cli.sample_output import note

if TYPE_CHECKING:
    from pipelines.models.metadata import Metadata
    from pipelines.models.request import Painted, Picture, Request, Start, Style, Then


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says about what to draw and how; None or empty where it is silent."""

    prompts: Sequence[str] = ()
    file: str | None = None
    n: int | None = None
    seed: int | None = None
    seeds: str | None = None
    negative: str | None = None
    image: Path | None = None
    sigma: float | None = None
    mask: Path | None = None
    variation: Path | None = None
    style: Sequence[str] = ()
    paint: Sequence[str] = ()
    strength: float | None = None
    then: str | None = None
    switch: float | None = None
    switch_sigma: float | None = None
    settings: Mapping[str, Any] | None = None
    """Dotted name of a sampling setting → value."""

    stage: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether a picture's own settings are left as they are."""
        return not any(getattr(self, f.name) not in (None, (), {}, []) for f in fields(self))


def make_request(
    options: Options,
    stages: Sequence[Mapping[str, Any]],
    batch: int | None,
    like: Metadata | None = None,
) -> Request:
    """What to draw.

    Args:
        stages: of the ensemble's manifest.
        batch: pictures drawn at once.
        like: settings of a picture, which hold where the options are silent.

    Warns:
        SamplingWarning: A setting has no effect.

    Raises:
        ValueError: An option is invalid.
    """
    from pipelines.models.manifest import check_sampling, own_sampling
    from pipelines.models.request import BATCH, Mask, Reference, Request
    from pipelines.spec.sampling import warn_not_run, with_changes

    before = like.request if like else None
    own = own_sampling(stages)
    if before:
        own |= {name: s for name, s in before.sampling.items() if name in own}
        if gone := sorted(set(before.sampling) - set(own)):
            note(f"the model has no stage {', '.join(gone)}, whose settings are left out")
    sampling = with_changes(own, options.settings or {})
    stage = options.stage or (before.stage if before else None)
    run = _stages_to(stage, stages)
    check_sampling(run, sampling)
    warn_not_run(options.settings or {}, list(own), [s["name"] for s in run])
    pictures = _pictures(options, like)
    mine: dict[str, Any] = {
        "pictures": pictures,
        "sampling": {s["name"]: sampling[s["name"]] for s in run},
        "stage": stage,
        "batch": batch or (before.batch if before else BATCH),
    }
    if options.negative is not None:
        mine["negative"] = options.negative or None
    if options.variation:
        mine |= {"variation": Reference.of(options.variation), "style": []}
    if options.style:
        mine |= {"style": [_style(text) for text in options.style]}
        mine |= {} if options.variation else {"variation": None}
    if options.mask:
        mine["mask"] = Mask.read(options.mask)
    mine |= {
        "image": _start(options, before),
        "then": _then(options, before),
        "paint": _paint(options, before),
    }
    rest = {name: getattr(before, name) for name in Request.model_fields} if before else {}
    return Request(**(rest | mine))


def _stages_to(last: str | None, stages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    names = [s["name"] for s in stages]
    if last is not None and last not in names:
        raise ValueError(f"there is no stage {last!r}; the cascade has {', '.join(names)}")
    return list(stages[: names.index(last) + 1] if last else stages)


def _pictures(options: Options, like: Metadata | None) -> list[Picture]:
    """Prompts with their seeds."""
    from pipelines.models.prompts import check_prompt, check_text, read_prompts
    from pipelines.models.request import Picture

    if options.seed is not None and options.seeds is not None:
        raise ValueError("--seed and --seeds are both given; keep one")
    prompts = [*options.prompts, *(read_prompts(options.file) if options.file else ())]
    check_text("--negative", options.negative or "")
    for name, text in [("--then", options.then), *(("the prompt", one) for one in prompts)]:
        if text is not None:
            check_prompt(name, text)
    if like and options.is_empty:
        return like.request.pictures
    if like and options.seed is None and options.seeds is None:
        return _with_the_same_noise(prompts, options.n, like.shown)
    if not prompts and like:
        prompts = list(dict.fromkeys(p.prompt for p in like.shown))
    if not prompts and options.variation:
        prompts = [""]
    if not prompts:
        raise ValueError(
            "there is nothing to draw; write one or more prompts after the model, or --prompts FILE"
        )
    return [
        Picture(prompt=prompt, seed=seed, number=number)
        for prompt, noise in zip(prompts, _noise(options, len(prompts)), strict=True)
        for seed, number in noise
    ]


def _noise(options: Options, prompts: int) -> list[list[tuple[int, int]]]:
    """(seed, number) of each prompt's pictures."""
    from pipelines.models.prompts import assign_seeds, parse_seeds

    if options.seeds is not None:
        seeds = assign_seeds(prompts, options.n, parse_seeds(options.seeds))
        return [[(seed, 0) for seed in each] for each in seeds]
    n = options.n or 1
    return [[(options.seed or 0, i * n + j) for j in range(n)] for i in range(prompts)]


def _with_the_same_noise(
    prompts: Sequence[str], n: int | None, shown: Sequence[Picture]
) -> list[Picture]:
    """The pictures of a file with other prompts, or more of them."""
    from pipelines.models.request import Picture

    if n is not None:
        if len(shown) > 1:
            raise ValueError(
                f"-n goes on with the seed of one picture, but --like has {len(shown)}; give "
                "--seed or --seeds as well"
            )
        [first] = shown
        return [
            Picture(prompt=prompt, seed=first.seed, number=first.number + i)
            for i, prompt in enumerate(q for q in prompts or [first.prompt] for _ in range(n))
        ]
    if not prompts:
        return list(shown)
    if len(prompts) != len(shown) and 1 not in (len(prompts), len(shown)):
        raise ValueError(
            f"there are {len(prompts)} prompts for the {len(shown)} pictures of --like; give 1 or "
            f"{len(shown)}, or new seeds with --seed"
        )
    count = max(len(prompts), len(shown))
    return [
        shown[i % len(shown)].model_copy(update={"prompt": prompts[i % len(prompts)]})
        for i in range(count)
    ]


def _style(text: str) -> Style:
    """A style from ``FILE`` or ``FILE=WEIGHT``."""
    from pipelines.models.request import Style

    file, equals, weight = text.rpartition("=")
    if not equals or Path(text).is_file():
        return Style.of(text)
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"--style {text!r} has no weight above 0; write FILE or FILE=WEIGHT")
    return Style.of(file, weight=value)


def _start(options: Options, before: Request | None) -> Start | None:
    from pipelines.models.request import Start

    start = before.image if before else None
    if options.image:
        start = Start.of(options.image, sigma=start.sigma if start else None)
    if options.sigma is None:
        return start
    if start is None:
        raise ValueError("--sigma is given without --image, the picture to start from")
    return start.model_copy(update={"sigma": options.sigma})


def _then(options: Options, before: Request | None) -> Then | None:
    from pipelines.models.request import Then

    old = before.then if before else None
    switches = {"switch": options.switch, "switch_sigma": options.switch_sigma}
    given = {name: value for name, value in switches.items() if value is not None}
    if len(given) > 1:
        raise ValueError("--switch and --switch-sigma are both given; keep one")
    prompt = options.then if options.then is not None else old.prompt if old else None
    if prompt is None:
        if given:
            name = next(iter(given)).replace("_", "-")
            raise ValueError(f"--{name} is given without --then, the prompt to switch to")
        return None
    if given or old is None:
        return Then(prompt=prompt, **given)
    return old.model_copy(update={"prompt": prompt})


def _paint(options: Options, before: Request | None) -> list[Painted]:
    from pipelines.models.request import Painted

    old = before.paint if before else []
    if options.paint:
        from pipelines.models.painting import STRENGTH  # imports torch

        strength = STRENGTH if options.strength is None else options.strength
        if not math.isfinite(strength):
            raise ValueError(f"--strength is {strength}; write a number of 0 or more")
        return [_painted(text, strength) for text in options.paint]
    if options.strength is None:
        return list(old)
    if not old:
        raise ValueError("--strength is given without --paint")
    return [Painted(**{**dict(p), "strength": options.strength}) for p in old]


def _painted(text: str, strength: float) -> Painted:
    """A painted phrase from ``PHRASE=WHERE``."""
    from pipelines.models import painting
    from pipelines.models.request import Mask, Painted

    words, where = painting.split_argument(text)
    parts = where.split(",")
    if len(parts) == 1 or Path(where).is_file():
        mask = Mask.read(where, painting.SIDE)
        return Painted(phrase=words, where=mask, strength=strength)
    painting.box_mask(parts)
    return Painted(phrase=words, where=[float(p) for p in parts], strength=strength)
