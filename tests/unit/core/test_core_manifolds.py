"""Precision, recall, density, coverage and copies of training pictures."""

import pytest
import torch

from ediffi_core.features import Features
from ediffi_core.manifolds import (
    density_coverage,
    neighbours,
    precision_recall,
    share,
)


def normal(n, d, seed, shift=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, d, generator=generator, dtype=torch.float64) + shift


def distances(a, b):
    return (a[:, None] - b[None]).square().sum(2).sqrt()


def radius(x, k):
    return distances(x, x).sort(1).values[:, k]


def test_precision_and_recall_are_those_of_their_definition():
    made, real = normal(50, 3, 0, scale=0.7), normal(40, 3, 1)
    apart = distances(made, real)
    found = precision_recall(Features.of(made), Features.of(real), k=3)
    inside = (apart <= radius(real, 3)).any(1).double().mean()
    covered = (radius(made, 3) >= apart.T).any(1).double().mean()
    assert found["precision"].value == float(inside)
    assert found["recall"].value == float(covered)
    assert found["precision"].value > found["recall"].value  # less spread than the real ones


def test_density_and_coverage_are_those_of_their_definition():
    made, real = normal(50, 3, 0, scale=0.7), normal(40, 3, 1)
    inside = distances(real, made) < radius(real, 5)[:, None]
    found = density_coverage(Features.of(made), Features.of(real), k=5)
    assert found["density"].value == pytest.approx(int(inside.sum()) / (5 * 50), rel=1e-12)
    assert found["coverage"].value == float(inside.any(1).double().mean())
    assert found["density"].low < found["density"].value < found["density"].high


def test_sets_of_one_distribution_have_a_density_near_one_and_those_far_apart_none():
    made, real = Features.of(normal(400, 2, 0)), Features.of(normal(400, 2, 1))
    far = Features.of(normal(400, 2, 2, shift=100))
    assert density_coverage(made, real)["density"].value == pytest.approx(1, abs=0.1)
    assert density_coverage(far, real)["density"].value == 0
    assert precision_recall(far, real)["recall"].value == 0


def test_copies_of_training_pictures_are_found():
    training = normal(200, 8, 0)
    made = normal(50, 8, 1)
    made[:5] = training[[3, 14, 15, 92, 65]] + 1e-3
    found = neighbours(Features.of(made), Features.of(training))
    apart = distances(made, training)
    assert torch.equal(found.index, apart.argmin(1))
    assert found.index[:5].tolist() == [3, 14, 15, 92, 65]
    nearest = apart.sort(1).values
    torch.testing.assert_close(found.distance, nearest[:, 0], rtol=1e-9, atol=0)
    torch.testing.assert_close(found.ratio, nearest[:, 0] / nearest[:, 1], rtol=1e-9, atol=0)
    own = radius(training, 1)[found.index]
    assert torch.equal(found.authentic, nearest[:, 0] > own)
    results = found.measured(Features.of(made, name="clip"))
    assert results["memorised"].value == 0.1
    assert results["authenticity"].value == float(found.authentic.double().mean()) < 0.95
    assert results["memorised"].low > 0 and results["memorised"].features == "clip"


def test_a_copy_of_a_training_picture_that_is_there_twice_has_a_ratio_of_one():
    training = normal(100, 16, 0)  # so many that distances are computed by products
    training[70] = training[3]
    found = neighbours(Features.of(training[[3, 4]]), Features.of(training))
    assert (found.distance.tolist(), found.ratio.tolist()) == ([0.0, 0.0], [1.0, 0.0])
    assert found.authentic.tolist() == [False, False]


def test_a_share_near_its_bounds_has_an_interval_within_them():
    """Wilson's: no hit in 10 still leaves up to 28 %."""
    made = Features.of(torch.zeros(10, 1))
    none, every = share(torch.zeros(10) > 0, made), share(torch.zeros(10) == 0, made)
    assert (none.low, every.high) == pytest.approx((0, 1), abs=1e-12)
    assert none.high == pytest.approx(0.2775, abs=1e-4)
    assert every.low == pytest.approx(1 - 0.2775, abs=1e-4)


def test_too_few_pictures_are_refused():
    few = Features.of(torch.eye(3))
    with pytest.raises(ValueError, match="precision_recall needs at least 4 pictures"):
        precision_recall(few, few)
    with pytest.raises(ValueError, match="density_coverage needs at least 6 pictures"):
        density_coverage(few, few)
    with pytest.raises(ValueError, match="neighbours needs at least 2"):
        neighbours(few, Features.of(torch.ones(1, 3)))
