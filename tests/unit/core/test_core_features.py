"""Streams of features, and sums over pairs of them, do not depend on how they are cut."""

import random

import pytest
import torch

from ediffi_core.distances import cmmd, fid, group_moments, kid
from ediffi_core.features import (
    Features,
    Share,
    gaussian,
    kernel_diagonal,
    kernel_sums,
    polynomial,
)
from ediffi_core.manifolds import (
    density_coverage,
    inside_balls,
    nearest_distances,
    neighbours,
    precision_recall,
)
from ediffi_core.measures import MEASURES, measure
from ediffi_core.metrics import Moments, kernel_distance

OPTIONS = {"kid_subsets": 5, "kid_subset_size": 30}


def normal(n, d, seed, shift=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, d, generator=generator) + shift


def cut(values, seed):
    """A stream in parts of random sizes, some empty."""
    rng = random.Random(seed)
    parts, at = [], 0
    while at < len(values):
        size = rng.choice((0, 1, 3, 17, 64))
        parts.append(values[at : at + size])
        at += size
    return Features(lambda: iter(parts), count=len(values))


def test_blocks_are_full_and_hold_all_vectors_in_order():
    values = normal(100, 3, 0)
    for seed, size in enumerate((1, 7, 32, 100, 1000)):
        stream = cut(values, seed)
        for _ in range(2):  # as often as asked
            blocks = list(stream.blocks(size))
            assert torch.equal(torch.cat(blocks), values.double())
            assert [len(b) for b in blocks[:-1]] == [size] * (len(blocks) - 1)
        assert stream.dim == 3


def test_rows_come_in_the_order_of_their_indices():
    values, index = normal(50, 3, 0), torch.tensor([49, 0, 7, 7, 30])
    assert torch.equal(cut(values, 1).rows(index, size=8), values[index].double())


@pytest.mark.parametrize(
    ("stream", "match"),
    [
        (Features(lambda: iter([torch.zeros(3, 2)]), count=4), "should be of 4 pictures, got 3"),
        (Features(lambda: iter([torch.zeros(3, 2), torch.zeros(1, 3)]), count=4), "one width"),
        (Features.of(torch.tensor([[0.0], [torch.nan]]), name="clip"), "clip: those of picture 1"),
    ],
)
def test_a_broken_stream_is_refused(stream, match):
    with pytest.raises(ValueError, match=match):
        list(stream.blocks())


def test_an_index_beyond_the_stream_is_refused():
    with pytest.raises(ValueError, match="outside 0 … 3"):
        Features.of(torch.zeros(4, 2)).rows(torch.tensor([4]))
    with pytest.raises(ValueError, match="no pictures"):
        _ = Features.of(torch.zeros(0, 2)).dim


@pytest.mark.parametrize("kernel", [polynomial(4, 1.5), gaussian(10.0)])
def test_kernel_sums_are_those_of_all_pairs_in_any_blocks_and_shares(kernel):
    x, y = normal(70, 4, 0), normal(45, 4, 1, shift=1)
    whole = kernel(x.double(), y.double())
    within = kernel(x.double(), x.double())
    for seed, block in enumerate((13, 100)):
        a, b = cut(x, seed), cut(y, seed + 9)
        parts = [kernel_sums(a, b, kernel, block=block, share=Share(i, 3)) for i in (2, 0, 1)]
        found = parts[0] + (parts[1] + parts[2])
        torch.testing.assert_close(found.rows, whole.sum(1), rtol=1e-12, atol=0)
        torch.testing.assert_close(found.columns, whole.sum(0), rtol=1e-12, atol=0)
        halves = [kernel_sums(a, a, kernel, block=block, share=Share(i, 2)).rows for i in (0, 1)]
        torch.testing.assert_close(sum(halves), within.sum(1), rtol=1e-12, atol=0)
        own = kernel_diagonal(a, b, kernel, block=block)
        torch.testing.assert_close(own, whole[:45].diagonal(), rtol=1e-12, atol=0)


def test_moments_merge_in_any_order_and_can_be_taken_out_again():
    values = normal(200, 5, 0, shift=3)
    whole = Moments.of(values)
    for seed in range(5):
        parts = [Moments.of(p) for p in torch.split(values, [30, 1, 99, 2, 68])]
        random.Random(seed).shuffle(parts)
        while len(parts) > 1:
            parts.append(parts.pop(0) + parts.pop(0))
        for found in (parts[0], Moments.of(cut(values, seed))):
            torch.testing.assert_close(found.mean, whole.mean, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(found.scatter, whole.scatter, rtol=1e-12, atol=1e-10)
    rest, expected = whole - Moments.of(values[:60]), Moments.of(values[60:])
    assert rest.count == 140
    torch.testing.assert_close(rest.mean, expected.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rest.scatter, expected.scatter, rtol=1e-12, atol=1e-10)


def test_groups_of_moments_are_the_same_however_many_fit_in_memory():
    stream = cut(normal(90, 4, 0), 3)
    at_once = list(group_moments(stream, 6, seed=1))
    one_by_one = list(group_moments(stream, 6, seed=1, held_bytes=1))
    assert [m.count for m in at_once] == [15] * 6
    for a, b in zip(at_once, one_by_one, strict=True):
        torch.testing.assert_close(a.scatter, b.scatter, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [60, 45])
def test_every_measure_is_the_same_for_a_stream(size):
    x, y, t = normal(60, 6, 0), normal(size, 6, 1, shift=0.5), normal(80, 6, 2)
    memory = measure(MEASURES, *map(Features.of, (x, y)), training=Features.of(t), **OPTIONS)
    assert memory.keys() == {
        *("fid", "kid", "cmmd", "precision", "recall", "density", "coverage"),
        *("memorised", "authenticity"),
    }
    streamed = measure(MEASURES, cut(x, 1), cut(y, 2), training=cut(t, 3), **OPTIONS)
    for name, found in memory.items():
        for end in ("value", "low", "high"):
            expected = getattr(found, end)
            assert getattr(streamed[name], end) == pytest.approx(expected, rel=1e-9), name


def test_pairs_are_the_same_in_blocks_of_any_size():
    x, y = normal(60, 6, 0), normal(45, 6, 1)
    a, b = Features.of(x), Features.of(y)
    size = torch.full((45,), 2.0)
    apart, at = nearest_distances(a, b, 3)
    for block in (8, 44):
        distance, index = nearest_distances(a, b, 3, block=block)
        torch.testing.assert_close(distance, apart, rtol=1e-9, atol=0)
        assert torch.equal(index, at)
        assert torch.equal(inside_balls(a, b, size, block=block), inside_balls(a, b, size))
        assert precision_recall(a, b, block=block) == precision_recall(a, b)
        assert density_coverage(a, b, block=block) == density_coverage(a, b)
        near, expected = neighbours(a, b, block=block), neighbours(a, b)
        assert torch.equal(near.index, expected.index)
        assert torch.equal(near.authentic, expected.authentic)


def test_the_kernel_distance_of_each_picture_is_the_same_for_a_stream():
    x, y = normal(64, 6, 0), normal(64, 6, 1, shift=0.5)
    torch.testing.assert_close(
        kernel_distance(cut(x, 0), cut(y, 1)), kernel_distance(x, y), rtol=1e-9, atol=1e-12
    )


def test_features_of_two_networks_are_not_compared():
    a = Features.of(normal(40, 3, 0), name="clip", sha256="a" * 64)
    for b in (
        Features.of(normal(40, 3, 1), name="clip", sha256="b" * 64),
        Features.of(normal(40, 4, 1), name="clip", sha256="a" * 64),
    ):
        for one in (fid, cmmd, precision_recall, density_coverage, neighbours):
            with pytest.raises(ValueError, match="compute both with one network"):
                one(a, b)
        with pytest.raises(ValueError, match="compute both with one network"):
            kid(a, b, subset_size=30)


def test_only_known_measures_with_what_they_need_are_computed():
    a = Features.of(normal(40, 3, 0))
    with pytest.raises(ValueError, match="no measure 'is'; there are fid, kid"):
        measure(["is"], a, a)
    with pytest.raises(ValueError, match="training pictures"):
        measure(["neighbours"], a, a)
