"""p(σ), its intervals and the sampling grid against scipy and the printed formulas."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ediffi_core import draws
from ediffi_core.noise import Interval, NoiseDistribution, SamplerDensity, edm_grid, edm_levels
from ediffi_core.normal import normal_quantile
from ediffi_core.tree import complement, interval

NOISE = NoiseDistribution()

# upper edge of E^l_0 and lower edge of E^l_{2^l - 1}
EDGES = [
    (1, "0.301194", "0.301194"),
    (2, "0.134071", "0.676642"),
    (3, "0.0757422", "1.197719"),
    (4, "0.0477897", "1.898273"),
    (5, "0.0322164", "2.815890"),
    (6, "0.0227168", "3.993426"),
    (7, "0.0165549", "5.479812"),
    (8, "0.0123750", "7.330773"),
    (9, "0.00944035", "9.609593"),
]


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("level", "low", "high"), EDGES)
def test_boundaries_are_the_table_s(level, low, high):
    sigma_lo, edge = interval(f"E{level}_0").bounds(NOISE)
    assert sigma_lo == 0
    assert f"{edge:.{len(low) - 2}f}" == low
    edge, sigma_hi = interval(f"E{level}_{2**level - 1}").bounds(NOISE)
    assert f"{edge:.6f}" == high
    assert sigma_hi == math.inf


def test_sigma_is_scipy_s_lognormal_quantile_and_quantile_its_inverse():
    q = np.concatenate(
        [np.logspace(-12, -2, 50), np.linspace(0.01, 0.99, 99), 1 - 2.0 ** -np.arange(7, 40)]
    )
    other = NoiseDistribution(P_mean=-0.4, P_std=1.7)
    for noise in (NOISE, other):
        sigma = noise.sigma(torch.from_numpy(q))
        expected = stats.lognorm(s=noise.P_std, scale=math.exp(noise.P_mean)).ppf(q)
        np.testing.assert_allclose(sigma.numpy(), expected, rtol=1e-10)
        np.testing.assert_allclose(noise.quantile(sigma).numpy(), q, rtol=0, atol=2e-15)
    ends = NOISE.sigma(f64(0, 1))
    assert ends.tolist() == [0, math.inf]
    assert NOISE.quantile(ends).tolist() == [0, 1]


def test_float32_quantiles_are_worked_out_in_float64():
    assert NOISE.sigma(torch.tensor([0.5])).dtype == torch.float64
    assert NOISE.quantile(torch.tensor([0.5])).dtype == torch.float64
    assert Interval(0.25, 0.5).draw(torch.tensor([0.5]), NOISE).dtype == torch.float64


def test_numbers_without_torch_are_those_of_the_tensors():
    random = torch.Generator().manual_seed(0)
    u = torch.rand(500, generator=random, dtype=torch.float64)
    q = torch.cat([u, u**40, 1 - u**12, f64(0, 0.5, 1), interval_ends()])
    expected = torch.special.ndtri(q).tolist()
    np.testing.assert_array_max_ulp([normal_quantile(x) for x in q.tolist()], expected, 8)
    sigma = NOISE.sigma(q)
    np.testing.assert_allclose([NOISE.sigma_at(x) for x in q.tolist()], sigma, rtol=1e-14)
    steps = SamplerDensity()
    shares = [steps.quantile_at(s) for s in sigma.tolist()]
    np.testing.assert_allclose(shares, steps.quantile(sigma), rtol=0, atol=1e-15)


def interval_ends():
    """Of every expert of levels 1 to 9."""
    return torch.arange(1, 512, dtype=torch.float64) / 512


@pytest.mark.parametrize("q", [-0.1, 1.1, float("nan")])
def test_a_quantile_lies_between_0_and_1(q):
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        normal_quantile(q)


SLICES = {
    **{name: interval(name) for name in ("E0_0", "E1_0", "E1_1", "E3_0", "E9_0", "E9_1", "E9_511")},
    "M_C": complement(["E9_511", "E3_0"]),
}


@pytest.mark.parametrize("name", SLICES)
def test_draws_stay_inside_and_follow_the_truncated_lognormal(name):
    piece = SLICES[name]
    lo, hi = piece.bounds(NOISE)
    u = draws.uniform(0, "test/noise", torch.arange(40_000), 1)[:, 0]
    sigma = piece.draw(u, NOISE)
    assert ((sigma >= lo) & (sigma < hi)).all()

    def cdf(s):  # by the upper tail, which keeps its digits where E9_511 lives
        tail = stats.norm.sf((np.log(s) - NOISE.P_mean) / NOISE.P_std)
        return ((1 - piece.q_lo) - tail) / (piece.q_hi - piece.q_lo)

    assert stats.kstest(sigma.numpy(), cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    "name", [*SLICES, *(f"E{n}_{i}" for n in (2, 5, 10, 50) for i in range(4))]
)
def test_no_value_of_u_leaves_the_interval(name):
    """Half-open to the last bit, although q_lo + (q_hi − q_lo) u rounds up to q_hi."""
    piece = SLICES[name] if name in SLICES else interval(name)
    lo, hi = piece.bounds(NOISE)
    steps = torch.arange(64, dtype=torch.float64)
    u = torch.cat(
        [
            steps * 2.0**-53,
            2.0 ** -(steps + 1),
            1 - 2.0 ** -steps.clamp(1, 53),
            1 - (steps + 1) * 2.0**-53,
        ]
    )
    assert u.max() < 1
    sigma = piece.draw(u, NOISE)
    assert sigma.isfinite().all()
    assert ((sigma > 0) & (sigma >= lo) & (sigma < hi)).all()
    assert torch.log(sigma).isfinite().all()


@pytest.mark.parametrize(
    ("num_steps", "lo", "hi", "rho"),
    [(2, 0.002, 80, 7), (25, 0.002, 80, 7), (18, 0.0005, 40, 3), (7, 0.01, 1, 1)],
)
def test_grid_is_edm_equation_5(num_steps, lo, hi, rho):
    grid = edm_grid(num_steps, sigma_min=lo, sigma_max=hi, rho=rho)
    assert grid.dtype == torch.float64
    expected = [
        (hi ** (1 / rho) + i / (num_steps - 1) * (lo ** (1 / rho) - hi ** (1 / rho))) ** rho
        for i in range(num_steps)
    ]
    np.testing.assert_allclose(grid.numpy(), [*expected, 0], rtol=1e-12)
    assert (grid.diff() < 0).all()
    levels = edm_levels(num_steps, sigma_min=lo, sigma_max=hi, rho=rho)
    np.testing.assert_allclose(levels, grid[:-1].numpy(), rtol=1e-12)


def test_a_grid_of_one_step_goes_from_the_top_to_zero():
    np.testing.assert_allclose(edm_grid(1).numpy(), [80, 0], rtol=1e-13)
    np.testing.assert_allclose(edm_levels(1), [80], rtol=1e-13)


def test_share_of_the_steps_of_config_d():
    """25 sampling steps meet the three experts 9, 11 and 5 times."""
    sigma = edm_grid(25)[:-1]
    low, high = interval("E3_0").bounds(NOISE)[1], interval("E9_511").bounds(NOISE)[0]
    assert ((sigma >= high).sum(), (sigma < low).sum()) == (9, 5)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: edm_grid(0), "at least 1 step, got 0"),
        (lambda: edm_grid(5, sigma_min=0), "0 < sigma_min < sigma_max"),
        (lambda: edm_grid(5, sigma_min=2, sigma_max=1), "got 2 and 1"),
        (lambda: NoiseDistribution(P_std=0), "P_std must be positive, got 0"),
        (lambda: NoiseDistribution(P_std=math.nan), "P_std must be positive"),
        (lambda: Interval(0.5, 0.5), r"got \[0.5, 0.5\)"),
        (lambda: Interval(-0.1, 0.5), "quantiles"),
        (lambda: Interval(0.5, 1.1), "quantiles"),
        (lambda: Interval(math.nan, 1), "quantiles"),
    ],
)
def test_impossible_settings_are_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()
