"""Stratified draws: equally many per expert, with weights for either distribution."""

import math

import pytest
import torch

from ediffi_core import tree
from ediffi_core.noise import NoiseDistribution, SamplerDensity, edm_grid
from ediffi_core.strata import Strata

NOISE, STEPS = NoiseDistribution(), SamplerDensity()
CONFIG_D = tree.intervals_of(["E9_511", "M_C", "E3_0"])


def edges_of(intervals):
    rising = sorted(intervals.values(), key=lambda i: i.q_lo)
    return (0.0, *(i.bounds(NOISE)[1] for i in rising))


def test_the_samplers_density_is_where_its_grid_has_its_steps():
    grid = edm_grid(4001)[:-1]
    for low, high in ((9.609593, math.inf), (0.0757422, 9.609593), (0, 0.0757422)):
        ends = torch.tensor([low, high], dtype=torch.float64)
        share = float(STEPS.quantile(ends).diff())
        counted = ((grid >= low) & (grid < high)).double().mean().item()
        assert share == pytest.approx(counted, abs=1e-3)
    # shares of Config D
    assert float(1 - STEPS.quantile(torch.tensor(9.609593))) == pytest.approx(0.335, abs=1e-3)
    q = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    torch.testing.assert_close(STEPS.quantile(STEPS.sigma(q)), q)


@pytest.mark.parametrize("distribution", [NOISE, STEPS])
def test_a_density_is_the_slope_of_its_quantile(distribution):
    x = torch.linspace(math.log(0.003), math.log(70), 200, dtype=torch.float64)
    slope = (
        distribution.quantile((x + 1e-5).exp()) - distribution.quantile((x - 1e-5).exp())
    ) / 2e-5
    torch.testing.assert_close(distribution.density(x.exp()), slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("pictures", [1, 96, 144, 1000, 5000])
def test_every_expert_of_config_d_has_as_many_draws(pictures):
    index, sigma = Strata(edges=edges_of(CONFIG_D)).draw(1000, pictures=pictures, seed=3)
    for interval in CONFIG_D.values():
        low, high = interval.bounds(NOISE)
        mine = (sigma >= low) & (sigma < high)
        assert int(mine.sum()) == 1000
        # The same pictures for all experts, each as often, to one.
        counts = torch.bincount(index[mine] % pictures, minlength=min(pictures, 1000))
        assert int(counts[: min(pictures, 1000)].min()) >= 1000 // pictures
        assert int(counts.max()) <= -(-1000 // pictures)
    assert len(index.unique()) == len(index) == 3000


def test_over_p_the_same_number_of_draws_hardly_meets_the_highest_expert():
    """The reason for strata: 0.2 % of p(σ), but a third of the steps."""
    sigma = NOISE.sigma((torch.arange(3000).double() + 0.5) / 3000)
    assert int((sigma >= CONFIG_D["E9_511"].bounds(NOISE)[0]).sum()) == 6


TREES = [["E0_0"], ["E1_1", "E1_0"], ["E9_511", "M_C", "E3_0"], ["E5_31", "M_C"]]


@pytest.mark.parametrize("names", TREES)
@pytest.mark.parametrize("noise", [NOISE, NoiseDistribution(P_mean=-0.4, P_std=1.0)])
def test_weights_give_back_both_distributions_whatever_the_tree(names, noise):
    strata = Strata(edges=edges_of(tree.intervals_of(names)), noise=noise)
    _, sigma = strata.draw(4000, pictures=100, seed=0)
    by_noise, by_step = strata.weights(sigma, noise), strata.weights(sigma, STEPS)
    x = sigma.log()
    mean = float((by_noise * x).sum())
    assert mean == pytest.approx(noise.P_mean, abs=0.02)
    assert float((by_noise * (x - noise.P_mean) ** 2).sum()) == pytest.approx(
        noise.P_std**2, rel=0.03
    )
    lo, hi = 0.002 ** (1 / 7), 80 ** (1 / 7)
    assert float((by_step * sigma ** (1 / 7)).sum()) == pytest.approx((lo + hi) / 2, rel=0.01)
    for cut in (0.0757422, 1.0, 9.609593):
        at = torch.tensor(cut, dtype=torch.float64)
        for weight, distribution in ((by_noise, noise), (by_step, STEPS)):
            below = float(weight[sigma < cut].sum())
            assert below == pytest.approx(float(distribution.quantile(at)), abs=0.01)


def test_an_interval_that_nothing_reaches_has_no_draws():
    strata = Strata(edges=(0.0, 1e-9, 1.0, 1e9, math.inf))
    index, sigma = strata.draw(64, pictures=10, seed=0)
    assert len(index) == len(sigma) == 2 * 64
    assert float(sigma.max()) < 1e9 and float(sigma.min()) >= 1e-9
    assert strata.weights(sigma, NOISE).isfinite().all()


def test_an_interval_of_one_distribution_is_drawn_from_that_alone():
    """No sampler steps above σ_max, and hardly any training at very low σ."""
    above = Strata(edges=(0.0, 80.0, math.inf)).draw(64, pictures=64, seed=0)[1][64:]
    q = NOISE.quantile(above)
    q_lo = float(NOISE.quantile(torch.tensor(80.0)))
    assert float(q.min()) >= q_lo
    assert float(((q - q_lo) / (1 - q_lo)).mean()) == pytest.approx(0.5, abs=0.02)


def test_edges_cover_everything():
    for edges in (
        (0.0, 1.0),
        (0.1, math.inf),
        (0.0, 2.0, 1.0, math.inf),
        (0.0, 1.0, 1.0, math.inf),
    ):
        with pytest.raises(ValueError, match="increase from 0 to inf"):
            Strata(edges=edges)
