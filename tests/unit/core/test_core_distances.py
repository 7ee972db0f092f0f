"""FID, KID and CMMD with intervals that hold what they promise."""

import json
import math

import pytest
import torch

from ediffi_core.distances import Measured, cmmd, fid, kid, mmd_error
from ediffi_core.features import Features, gaussian, polynomial
from ediffi_core.metrics import Moments, frechet_distance


def normal(n, d, seed, shift=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, d, generator=generator, dtype=torch.float64) + shift


def test_fid_is_the_frechet_distance_of_both_sets_with_an_interval_around_it():
    x, y = normal(200, 4, 0), normal(300, 4, 1, shift=0.5)
    found = fid(Features.of(x, name="inception", sha256="a"), Features.of(y, sha256="a"))
    assert found.value == frechet_distance(Moments.of(x), Moments.of(y))
    assert found.low < found.value < found.high
    assert (found.count, found.features, found.sha256) == (200, "inception", "a")


@pytest.mark.parametrize(("n", "m"), [(60, 60), (60, 90)])
def test_intervals_of_kernel_distances_are_the_jackknife_by_its_definition(n, m):
    x, y = normal(n, 3, 0), normal(m, 3, 1, shift=0.5)
    for kernel, unbiased in ((polynomial(3), True), (gaussian(10.0), False)):

        def mmd(keep_x, keep_y, kernel=kernel, unbiased=unbiased):
            a, b = x[keep_x], y[keep_y]
            if unbiased:
                return (
                    sum(
                        (k.sum() - k.trace()) / (len(k) * (len(k) - 1))
                        for k in (kernel(a, a), kernel(b, b))
                    )
                    - 2 * kernel(a, b).mean()
                )
            return kernel(a, a).mean() + kernel(b, b).mean() - 2 * kernel(a, b).mean()

        def without(count, i):
            return torch.arange(count) != i

        every = [without(c, -1) for c in (n, m)]
        if n == m:
            left = [[mmd(without(n, i), without(m, i)) for i in range(n)]]
        else:
            left = [
                [mmd(without(n, i), every[1]) for i in range(n)],
                [mmd(every[0], without(m, i)) for i in range(m)],
            ]
        variance = sum(float(torch.stack(v).var(correction=0)) * (len(v) - 1) for v in left)
        found = mmd_error(Features.of(x), Features.of(y), kernel, unbiased=unbiased)
        assert found == pytest.approx(math.sqrt(variance), rel=1e-6)


def test_cmmd_is_that_of_the_authors_code():
    x, y = (torch.nn.functional.normalize(normal(40, 8, s, shift=s), dim=1) for s in (0, 1))
    squares = [torch.cdist(a, b) ** 2 for a, b in ((x, x), (y, y), (x, y))]
    xx, yy, xy = (torch.exp(-s / 200).mean() for s in squares)
    found = cmmd(Features.of(x), Features.of(y))
    assert found.value == pytest.approx(float(1000 * (xx + yy - 2 * xy)), rel=1e-8)
    assert found.low < found.value < found.high


def test_kid_averages_subsets_and_counts_their_choice_as_uncertainty():
    x, y = Features.of(normal(100, 4, 0)), Features.of(normal(100, 4, 1, shift=1))
    whole = kid(x, y, subsets=3, subset_size=100)
    one, many = (kid(x, y, subsets=s, subset_size=20) for s in (2, 200))
    assert whole.value == pytest.approx(many.value, rel=0.1)
    error = mmd_error(x, y, polynomial(4), unbiased=True)
    assert (whole.high - whole.low) / 2 == pytest.approx(1.96 * error, rel=1e-3)
    assert one.high - one.low > many.high - many.low > whole.high - whole.low
    assert kid(x, y, subsets=3, subset_size=20, seed=1).value != one.value


def shifted_fid(n, seed):
    x, y = normal(n, 3, 2 * seed), normal(n, 3, 2 * seed + 1, shift=0.6)
    return fid(Features.of(x), Features.of(y), seed=seed)


def shifted_kid(n, seed):
    x, y = normal(n, 3, 2 * seed), normal(n, 3, 2 * seed + 1, shift=0.6)
    return kid(Features.of(x), Features.of(y), subsets=4, subset_size=n // 2)


def shifted_cmmd(n, seed):
    x, y = normal(n, 3, 2 * seed), normal(n, 3, 2 * seed + 1, shift=0.6)
    return cmmd(Features.of(x), Features.of(y))


@pytest.mark.slow
@pytest.mark.parametrize("measure", [shifted_fid, shifted_kid, shifted_cmmd])
def test_intervals_hold_the_expected_value_in_19_of_20_draws(measure):
    found = [measure(80, seed) for seed in range(120)]
    true = sum(m.value for m in found) / len(found)
    assert 105 <= sum(m.low <= true <= m.high for m in found) <= 119  # of 114 expected


@pytest.mark.parametrize(
    ("call", "needed"),
    [
        (lambda x: fid(x, x), "fid needs at least 4"),
        (lambda x: kid(x, x), "kid needs at least 1,000"),
        (lambda x: cmmd(x, x), "cmmd needs at least 3"),
    ],
)
def test_too_few_pictures_are_refused(call, needed):
    with pytest.raises(ValueError, match=f"{needed} pictures of each kind, got 2; raise"):
        call(Features.of(torch.eye(2)))


def test_a_result_is_read_back_from_json_and_has_flat_metrics():
    found = Measured(value=7.5, low=7.0, high=8.0, count=100, features="inception", sha256="a" * 64)
    assert Measured.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert found.metrics("fid") == {
        "fid/inception": 7.5,
        "fid/inception_ci95": 0.5,
        "fid/inception_low": 7.0,
        "fid/inception_high": 8.0,
        "fid/inception_pictures": 100.0,
    }
    unknown = Measured(**{**found.to_json(), "low": -math.inf, "high": math.inf})
    assert Measured.from_json(json.loads(json.dumps(unknown.to_json()))) == unknown
    assert unknown.metrics("fid").keys() == {"fid/inception", "fid/inception_pictures"}
