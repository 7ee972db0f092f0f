"""Guidance is D_c + w (D_c − D_u) in one pass, and costs nothing when w = 0."""

import numpy as np
import pytest
import torch

from ediffi_core.ensemble import Ensemble, Expert
from ediffi_core.guidance import (
    dynamic_threshold,
    guided,
    on_interval,
    per_expert,
    static_threshold,
)
from ediffi_core.noise import NoiseDistribution, edm_grid
from ediffi_core.precond import Denoiser
from ediffi_core.sampling import SOLVERS
from ediffi_core.tree import intervals_of

SIGMA = torch.tensor(0.7, dtype=torch.float64)


@pytest.fixture
def x():
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scale", [-1.0, 0.5, 3.0, 10.0])
def test_one_batched_pass_equals_two(scale, x, make_net, make_cond):
    denoiser, cond = Denoiser(make_net()), make_cond()
    with_text, without = denoiser(x, SIGMA, cond), denoiser(x, SIGMA, cond.null())
    assert (with_text - without).abs().max() > 0.01
    expected = with_text + scale * (with_text - without)
    found = guided(denoiser, cond, scale)(x, SIGMA)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(guided(denoiser, cond, scale, batched=False)(x, SIGMA), expected)


def test_minus_one_is_unconditional(x, make_net, make_cond):
    denoiser = Denoiser(make_net())
    found = guided(denoiser, make_cond(), -1)(x, SIGMA)
    expected = denoiser(x, SIGMA, make_cond().null())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_no_guidance_is_the_conditional_denoiser_bit_for_bit(x, make_net, make_cond):
    denoiser, cond = Denoiser(make_net()), make_cond()
    assert torch.equal(guided(denoiser, cond, 0)(x, SIGMA), denoiser(x, SIGMA, cond))


class Counted:
    """Returns half its input and records the rows of every evaluation."""

    def __init__(self):
        self.rows, self.sigmas = [], []

    def __call__(self, x, sigma, cond):
        assert len(x) == len(cond)
        self.rows.append(len(x))
        self.sigmas.append(float(sigma))
        return 0.5 * x


@pytest.mark.parametrize(
    ("scale", "batched", "expected"),
    [(0, True, [3]), (0.0, False, [3]), (2.0, True, [6]), (2.0, False, [3, 3])],
)
@pytest.mark.parametrize(("solver", "evaluations"), [("deis3", 7), ("euler", 7), ("heun", 13)])
def test_rows_evaluated(scale, batched, expected, solver, evaluations, x, make_cond):
    denoiser = Counted()
    denoise = guided(denoiser, make_cond(), scale, batched=batched)
    SOLVERS[solver](denoise, x, edm_grid(7))
    assert denoiser.rows == expected * evaluations


def test_guidance_on_an_interval_costs_nothing_elsewhere(x, make_cond):
    """Half-open, like experts' intervals."""
    grid = edm_grid(9)
    low, high = float(grid[5]), float(grid[2])
    denoiser = Counted()
    SOLVERS["euler"](guided(denoiser, make_cond(), on_interval(3.0, low, high)), x, grid)
    assert denoiser.rows == [3, 3, 3, 6, 6, 6, 3, 3, 3]


def test_a_scale_may_depend_on_sigma(x, make_net, make_cond):
    denoiser, cond = Denoiser(make_net()), make_cond()
    for sigma, w in ((0.5, 1.0), (2.0, 4.0)):
        at = torch.tensor(sigma, dtype=torch.float64)
        found = guided(denoiser, cond, lambda s: 2 * s)(x, at)
        assert torch.equal(found, guided(denoiser, cond, w)(x, at))


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 1), (-1, 1)])
def test_intervals_of_nothing_are_refused(low, high):
    with pytest.raises(ValueError, match=f"0 <= sigma_lo < sigma_hi, got {low} and {high}"):
        on_interval(3.0, low, high)


@pytest.fixture
def ensemble():
    pieces = intervals_of(["E9_511", "M_C", "E3_0"])
    experts = [Expert(n, i, torch.nn.Identity()) for n, i in pieces.items()]
    return Ensemble(experts, NoiseDistribution())


def test_every_expert_may_have_its_own_scale(ensemble, x, make_cond):
    scale = per_expert(ensemble, {"E9_511": 5.0, "E3_0": 0.0}, default=2.0)
    found = {s: scale(s) for s in (80.0, 9.61, 9.6, 0.0758, 0.0757, 0.002)}
    assert list(found.values()) == [5, 5, 2, 2, 0, 0]
    denoiser = Counted()
    SOLVERS["euler"](guided(denoiser, make_cond(), scale), x, edm_grid(25))
    assert denoiser.rows == [6] * 20 + [3] * 5  # the lowest five steps are the unguided expert's


def test_a_scale_for_no_expert_is_refused(ensemble):
    with pytest.raises(ValueError, match=r"guidance for E1_0, M_D, .* has E3_0, M_C, E9_511"):
        per_expert(ensemble, {"M_D": 1.0, "E1_0": 1.0, "M_C": 1.0}, default=0)


def test_static_threshold_clips(x):
    np.testing.assert_array_equal(static_threshold(3 * x), np.clip(3 * x.numpy(), -1, 1))


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.995, 1.0])
def test_dynamic_threshold_is_imagen_s(percentile):
    """Per picture: s = max(1, percentile of |x|), clip(x, −s, s)/s; numpy's nearest rank."""
    x = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    x *= torch.tensor([0.1, 0.4, 1, 2, 5, 50])[:, None, None, None]
    found = dynamic_threshold(percentile)(x).numpy()
    for row, picture in zip(found, x.numpy(), strict=True):
        s = max(1, np.percentile(np.abs(picture), 100 * percentile, method="inverted_cdf"))
        np.testing.assert_allclose(row, np.clip(picture, -s, s) / s, rtol=1e-6)
    assert np.abs(found).max() <= 1
    small = x[:1].clamp(-1, 1)
    assert torch.equal(dynamic_threshold(percentile)(small), small)


@pytest.mark.parametrize("percentile", [0, -0.1, 1.1])
def test_a_percentile_is_a_share(percentile):
    with pytest.raises(ValueError, match=rf"must lie in \(0, 1\], got {percentile}"):
        dynamic_threshold(percentile)


@pytest.mark.parametrize("scale", [0.0, 8.0])
def test_the_threshold_is_the_last_word(scale, x, make_net, make_cond):
    denoiser, cond = Denoiser(make_net()), make_cond()
    plain = guided(denoiser, cond, scale)(3 * x, SIGMA)
    assert plain.abs().max() > 1
    found = guided(denoiser, cond, scale, threshold=static_threshold)(3 * x, SIGMA)
    assert torch.equal(found, plain.clamp(-1, 1))
