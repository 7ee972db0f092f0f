"""Measures on features: what cannot be measured is refused before anything runs."""

import pytest
from planning_kit import edited, planned

from ediffi_core.features import Features
from ediffi_core.measures import MEASURES, measure
from pipelines.planning import lint
from pipelines.spec.evaluation import MeasureOptions

INCEPTION = {"kind": "inception", "weights": "/models/inception.pth"}
CLIP = {"kind": "clip", "model": "ViT-L-14-336"}
ENOUGH = {"captions": 5000, "features": {"inception": INCEPTION}}
MANY = {"data__validation__rows": 5000}


def check(evaluate, **changes):
    changes = {**MANY, **changes} | {f"evaluate__{k}": v for k, v in evaluate.items()}
    spec = edited(**changes)
    return [f for f in lint.check(spec, planned(spec)) if "draws 5,000 images" not in f.text]


def test_measures_of_enough_pictures_are_sound():
    assert check({**ENOUGH, "measures": ["fid", "kid", "precision_recall", "neighbours"]}) == []
    assert check({**ENOUGH, "features": {"clip": CLIP}, "measures": ["cmmd"]}) == []


@pytest.mark.parametrize(
    ("evaluate", "changes", "words"),
    [
        (
            {"captions": 400},
            {},
            ["kid needs 1,000 pictures, but 400", "captions: 1000", "{kid_subset_size: 400}"],
        ),
        ({}, {"data__validation__rows": 600}, ["600 are drawn; add validation data"]),
        (
            {"captions": 5, "measures": ["density_coverage"]},
            {},
            ["density_coverage needs 6 pictures", "captions: 6"],
        ),
        ({"measures": ["cmmd"]}, {}, ["cmmd is measured on features of CLIP", "kind: clip"]),
    ],
)
def test_what_cannot_be_measured_is_refused(evaluate, changes, words):
    errors = [f for f in check({**ENOUGH, **evaluate}, **changes) if f.is_error]
    assert len(errors) == 1 and errors[0].key == "evaluate.measures"
    assert all(w in errors[0].text for w in words), errors[0].text
    assert "\n" not in errors[0].text


@pytest.mark.parametrize(
    ("evaluate", "key", "words"),
    [
        (ENOUGH | {"captions": 2048}, "evaluate.captions", "fid on inception has 2,048 features"),
        (
            ENOUGH | {"features": {"own": {"kind": "clip"}}},
            "evaluate.features.own.model",
            "CLIP that conditions",
        ),
        ({"measures": ["fid"]}, "evaluate.measures", "without `evaluate.features`"),
        ({"measure_options": {"density_k": 3}}, "evaluate.measure_options", "has no effect"),
        (
            ENOUGH | {"measure_options": {"density_k": 3}},
            "evaluate.measure_options.density_k",
            "without `evaluate.measures: [density_coverage]`",
        ),
        (
            ENOUGH | {"neighbours_pictures": 50},
            "evaluate.neighbours_pictures",
            "without `evaluate.measures: [neighbours]`",
        ),
    ],
)
def test_what_is_probably_not_meant_is_said(evaluate, key, words):
    [found] = check(evaluate)
    assert (found.level, found.key, words in found.text) == ("warning", key, True)


def test_nothing_is_said_of_what_is_measured_already():
    spec = edited(evaluate__features={"inception": INCEPTION})
    made = planned(spec)
    assert any("kid needs" in f.text for f in lint.check(spec, made))
    done = [v for v in made.verdicts.values() if v.node.kind == "evaluate"]
    for verdict in done:
        made.verdicts.pop(verdict.node.id)
    assert not any("kid needs" in f.text for f in lint.check(spec, made))


@pytest.mark.parametrize("name", MEASURES)
def test_the_spec_knows_how_many_pictures_each_measure_needs(name):
    import torch

    options = MeasureOptions(kid_subset_size=12, kid_subsets=2)
    fewest = options.fewest(name)
    features = [
        Features.of(torch.randn(n, 2, generator=torch.Generator().manual_seed(n)))
        for n in (fewest, fewest - 1)
    ]
    measure([name], *[features[0]] * 2, training=features[0], **options.settings())
    with pytest.raises(ValueError, match=f"{name} needs at least {fewest} pictures"):
        measure([name], *[features[1]] * 2, training=features[1], **options.settings())
