"""What the options of ``ediffi evaluate`` ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.cli.drawing import parse_settings

if TYPE_CHECKING:
    from pipelines.evaluation.comparison import Options
    from pipelines.evaluation.sweep import Sweep
    from pipelines.spec.evaluation import FeatureNetwork
    from pipelines.spec.protocol import Protocol


def sweep_of(
    known: Protocol | None,
    guidance: str | None,
    steps: str | None,
    solver: str | None,
    settings: Sequence[str],
) -> tuple[Sweep, dict[str, Any]]:
    """The axes, and what is changed for all points; options take the place of the benchmark's.

    Raises:
        ValueError: An axis cannot be read, or is also among the changes.
    """
    from pipelines.evaluation.sweep import Sweep

    given = {"guidance": guidance, "steps": steps, "solver": solver}
    if known and not any(given.values()):
        given = {axis: getattr(known, axis) for axis in given}
    swept = Sweep.parse(**given)
    changes = {**(known.sampling if known else {}), **parse_settings(settings)}
    for axis in swept.axes:
        if axis in changes:
            raise ValueError(f"{axis} is both compared and set for all points; leave one out")
    return swept, changes


def options_of(known: Protocol | None, given: Mapping[str, Any], workers: int) -> Options:
    """The options, where they are not given the benchmark's."""
    from pipelines.evaluation.comparison import Options

    theirs = {}
    if known:
        names = ("seed", "batch", "clip", "clip_pretrained", "features", "measures")
        theirs = {name: getattr(known, name) for name in (*names, "measure_options")}
    chosen = {name: value for name, value in given.items() if value is not None}
    return Options(**{**theirs, **chosen}, workers=workers)


def check_effect(
    options: Options,
    given: Mapping[str, Any],
    *,
    known: Protocol | None,
    split: str,
    plan: bool,
    gpu: str | None,
    price: float,
) -> None:
    """Check that every option that was given has an effect; ValueError if one has none."""
    measures = given["measures"]
    if measures and not options.features:
        raise ValueError("--measures are of features; name a network with --features")
    is_clip = any(network.kind == "clip" for network in options.features.values())
    if measures and "cmmd" in measures and not is_clip:
        raise ValueError("cmmd is measured on features of CLIP; name one with --features")
    if given["clip_pretrained"] and options.clip is None:
        raise ValueError("--clip-pretrained is of --clip, which is not given; name it too")
    if known and split != "val":
        raise ValueError(f"--data {split} and --protocol both name the captions; leave one out")
    if (gpu or price) and not plan:
        raise ValueError("--gpu and --price are of --plan, which draws nothing; add it")
    if price and not gpu:
        raise ValueError("--price is that of a GPU; name its kind with --gpu")


def features_of(
    known: Protocol | None, given: Sequence[str] | None
) -> dict[str, FeatureNetwork] | None:
    """The networks of ``--features``; None if there is none.

    Raises:
        ValueError: A name is not in the benchmark, or settings are invalid.
    """
    if not given:
        return None
    from pydantic import ValidationError

    from pipelines.spec.evaluation import FeatureNetwork
    from pipelines.spec.loading import explain, parse_value

    theirs = known.features if known else {}
    found = {}
    for text in given:
        name, equals, settings = text.partition("=")
        if not equals:
            if name not in theirs:
                there = ", ".join(theirs) or "none"
                raise ValueError(
                    f"--features {name}: the benchmark has no such features, only {there}; give "
                    f"settings as --features '{name}={{kind: inception, weights: FILE}}'"
                )
            found[name] = theirs[name]
            continue
        try:
            found[name] = FeatureNetwork.model_validate(parse_value(settings))
        except ValidationError as error:
            raise ValueError(f"--features {name}: {explain(error, FeatureNetwork)}") from None
        except ValueError as error:
            raise ValueError(f"--features {name}: {error}") from None
    return found


def measures_of(text: str | None) -> list[str] | None:
    """The measures of ``--measures``; ValueError for one that there is not."""
    if text is None:
        return None
    from ediffi_core.measures import MEASURES
    from pipelines.evaluation.sweep import names

    known = [name for name in MEASURES if name != "neighbours"]  # of training pictures
    return names(text, "--measures", known)


def rank_deficient(options: Options, count: int) -> list[str]:
    """Warnings about FIDs of fewer pictures than features."""
    from pipelines.planning.lint_measures import INCEPTION_DIM

    return [
        f"fid/{name} has {dim:,} features, but {count:,} pictures are drawn: it rewards pictures "
        "that are all alike, and depends on their number; draw 10,000 or more, or measure kid"
        for name, network in options.features.items()
        if "fid" in options.measures and network.kind == "inception"
        if count <= (dim := int(network.layer or INCEPTION_DIM))
    ]
