"""From scores and features to an evaluation's metrics: what is reported, and what is not."""

import pytest
import torch

from ediffi_core.features import Features
from pipelines.runs.context import Context
from pipelines.steps.evaluate import (
    FRECHET_PICTURES_PER_FEATURE,
    check_enough,
    drop_inflated_clip_score,
    is_enough_for_frechet,
)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def ctx():
    return Context(
        node="evaluate/base/ensemble",
        fingerprint="f",
        store=None,
        folder="e",
        cpus=1,
        runtime={},
        manifests={},
        board=None,
    )


def test_a_score_above_that_of_real_pictures_is_not_kept(ctx):
    low, high = {"clip_score": tensor(0.1, 0.3)}, {"clip_score": tensor(0.4, 0.6)}
    for of, other, kept in ((high, low, False), (low, high, True), (low, low, False)):
        scores = of | {"val_loss": tensor(0, 0)}
        drop_inflated_clip_score(ctx, scores, other)
        assert ("clip_score" in scores) is kept and "val_loss" in scores


def test_a_frechet_distance_needs_many_pictures():
    enough = 3 * FRECHET_PICTURES_PER_FEATURE
    assert not is_enough_for_frechet(Features.of(torch.zeros(enough - 1, 3)))
    assert is_enough_for_frechet(Features.of(torch.zeros(enough, 3)))


@pytest.mark.parametrize(
    ("measure", "options", "needed"),
    [("kid", {}, "1,000"), ("kid", {"kid_subset_size": 9}, "9"), ("fid", {}, "4")],
)
def test_fewer_pictures_than_a_measure_needs_are_one_line(measure, options, needed):
    settings = {"measures": {"inception": [measure]}, "measure_options": options}
    with pytest.raises(ValueError) as caught:
        check_enough(settings, 3)
    assert str(caught.value).startswith(f"{measure} needs {needed} pictures, but there are 3 ")
    assert "\n" not in str(caught.value)
    check_enough(settings, 1000)
    check_enough({}, 1)
