"""Checks of the measures on features that a spec asks for."""

from __future__ import annotations

from collections.abc import Callable

from pipelines.dag.plan import Verdict
from pipelines.planning.findings import Finding, Findings, error, warning
from pipelines.spec.evaluation import Measure
from pipelines.spec.pipeline import Spec

INCEPTION_DIM = 2048
OPTIONS = {
    "kid_subsets": "kid",
    "kid_subset_size": "kid",
    "precision_k": "precision_recall",
    "density_k": "density_coverage",
}
"""Option of ``evaluate.measure_options`` → the measure that it is for."""


def check_measures(spec: Spec, todo: list[Verdict]) -> Findings:
    """All checks of this module, if an evaluation is still to run."""
    if any(v.node.kind == "evaluate" for v in todo):
        for one in CHECKS:
            yield from one(spec)


def too_few_pictures(spec: Spec) -> Findings:
    """Measures that need more pictures than are drawn."""
    evaluate, drawn = spec.evaluate, _drawn(spec)
    for measure in _used(spec):
        needed = evaluate.measure_options.fewest(measure)
        if needed <= drawn:
            continue
        instead = f"write `evaluate.captions: {needed}`"
        if drawn < evaluate.captions:
            instead = f"add validation data, of which there are {drawn:,} pairs"
        if measure == "kid":
            instead += f", or `evaluate.measure_options: {{kid_subset_size: {drawn}}}`"
        yield error(
            "evaluate",
            "evaluate.measures",
            f"{measure} needs {needed:,} pictures, but {drawn:,} are drawn; {instead}, or remove "
            f"{measure} from `evaluate.measures`",
        )


def rank_deficient_fid(spec: Spec) -> Findings:
    """FID of fewer pictures than features, whose covariance has no full rank."""
    drawn = _drawn(spec)
    if "fid" not in _used(spec):
        return
    for name, features in spec.evaluate.features.items():
        dim = int(features.layer or INCEPTION_DIM)
        if features.kind == "inception" and drawn <= dim:
            yield warning(
                "evaluate",
                "evaluate.captions",
                f"fid on {name} has {dim:,} features, but {drawn:,} pictures are drawn: such a "
                "distance rewards pictures that are all alike, and depends on their number; draw "
                "10,000 or more, as is usual, or measure kid",
            )


def cmmd_without_clip(spec: Spec) -> Findings:
    """CMMD without features of CLIP."""
    kinds = {features.kind for features in spec.evaluate.features.values()}
    if "cmmd" in _used(spec) and "clip" not in kinds:
        yield error(
            "evaluate",
            "evaluate.measures",
            "cmmd is measured on features of CLIP, of which there are none; add "
            "`evaluate.features: {clip: {kind: clip, model: ViT-L-14-336}}`, or remove it",
        )


def conditioning_clip(spec: Spec) -> Findings:
    """Features of the CLIP that conditions."""
    for name, features in spec.evaluate.features.items():
        if features.kind == "clip" and features.model in (None, spec.encoders.clip):
            yield warning(
                "evaluate",
                f"evaluate.features.{name}.model",
                f"features {name} are of the CLIP that conditions, which favours these models; "
                "name another one",
            )


def without_effect(spec: Spec) -> Findings:
    """Keys about measures that nothing reads."""
    evaluate = spec.evaluate
    given = evaluate.model_fields_set
    if not evaluate.features:
        for key in ("measures", "measure_options", "neighbours_pictures"):
            if key in given:
                yield _idle(key, "evaluate.features")
        return
    for option in sorted(evaluate.measure_options.model_fields_set):
        if OPTIONS[option] not in evaluate.measures:
            yield _idle(f"measure_options.{option}", f"evaluate.measures: [{OPTIONS[option]}]")
    if "neighbours_pictures" in given and "neighbours" not in evaluate.measures:
        yield _idle("neighbours_pictures", "evaluate.measures: [neighbours]")


def _idle(key: str, without: str) -> Finding:
    return warning(
        "evaluate",
        f"evaluate.{key}",
        f"`evaluate.{key}` has no effect without `{without}`; remove it, or add that",
    )


def _used(spec: Spec) -> list[Measure]:
    return list(spec.evaluate.measures) if spec.evaluate.features else []


def _drawn(spec: Spec) -> int:
    """Pictures that an evaluation draws."""
    validation = spec.data.validation
    pairs = validation.rows if validation.make else validation.pairs
    return min(spec.evaluate.captions, pairs or spec.evaluate.captions)


CHECKS: list[Callable[[Spec], Findings]] = [
    too_few_pictures,
    rank_deficient_fid,
    cmmd_without_clip,
    conditioning_clip,
    without_effect,
]
