"""Task vectors and the similarity of gradients, against formulas and known noise."""

import pytest
import torch

from ediffi_core.gradient_similarity import Gradients, by_distance
from ediffi_core.task_vectors import merged


def weights(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    found = {n: scale * torch.randn(s, generator=generator) for n, s in (("a", (3, 2)), ("b", 4))}
    return found | {"steps": torch.tensor(seed)}


def test_a_merge_is_the_root_and_a_weighted_sum_of_task_vectors():
    root, one, two = weights(0), weights(1), weights(2)
    found = merged(root, [(0.75, one), (-0.5, two)])
    for name in ("a", "b"):
        r, x, y = (of[name].double() for of in (root, one, two))
        assert torch.equal(found[name], (r + 0.75 * (x - r) - 0.5 * (y - r)).float())
        assert found[name].dtype == torch.float32
    assert found["steps"] == 0
    assert torch.equal(merged(root, [(1.0, one)])["a"], one["a"])


def test_a_merge_of_other_networks_is_refused():
    other = {**weights(1), "a": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match="differ in names or shapes"):
        merged(weights(0), [(1.0, other)])


def test_cosines_are_those_of_the_whole_gradients():
    halves = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    sums = Gradients(3)
    for part in halves.split(7, dim=2):
        sums.add(*part)
    found = sums.similarity()
    whole = halves.double().mean(0)
    expected = torch.nn.functional.cosine_similarity(whole[:, None], whole[None], dim=2)
    assert torch.allclose(found.cosine, expected)
    assert torch.allclose(found.norm, whole.norm(dim=1))
    first, second = halves.double()
    one_way = torch.nn.functional.cosine_similarity(first[:, None], second[None], dim=2)
    assert torch.allclose(found.halves, (one_way + one_way.T) / 2)


def test_halves_correct_for_the_noise_of_few_pictures():
    """True gradients at angles of 0, 30 and 90 degrees, with noise larger than they are."""
    generator = torch.Generator().manual_seed(1)
    size = 200_000
    angles = torch.deg2rad(torch.tensor([0.0, 30.0, 90.0]))
    basis = torch.randn(2, size, generator=generator)
    true = angles.cos()[:, None] * basis[0] + angles.sin()[:, None] * basis[1]
    sums = Gradients(3)
    sums.add(*(true + 2 * torch.randn(3, size, generator=generator) for _ in range(2)))
    found = sums.similarity()
    cosine = (angles[:, None] - angles[None]).cos().double()
    assert torch.allclose(found.corrected, cosine, atol=0.05)
    assert found.cosine[0, 1] < 0.5 < cosine[0, 1]
    assert found.halves[0, 0] < 0.3


def test_means_by_distance_leave_out_what_is_missing():
    nan = float("nan")
    table = torch.tensor([[1, 0.5, nan], [0.5, 1, 0.25], [nan, 0.25, 1]], dtype=torch.float64)
    near, far = by_distance(table)
    assert near == 0.375
    assert far != far
