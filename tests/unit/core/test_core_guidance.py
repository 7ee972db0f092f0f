"""Guidance is D_c + w (D_c − D_u), in one pass, and free when w = 0."""

import pytest
import torch

from ediffi_core.guidance import guided
from ediffi_core.noise import edm_grid
from ediffi_core.precond import Denoiser
from ediffi_core.sampling import SOLVERS

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


def test_minus_one_is_unconditional(x, make_net, make_cond):
    denoiser = Denoiser(make_net())
    found = guided(denoiser, make_cond(), -1)(x, SIGMA)
    expected = denoiser(x, SIGMA, make_cond().null())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_no_guidance_is_the_conditional_denoiser_bit_for_bit(x, make_net, make_cond):
    denoiser, cond = Denoiser(make_net()), make_cond()
    assert torch.equal(guided(denoiser, cond, 0)(x, SIGMA), denoiser(x, SIGMA, cond))


@pytest.mark.parametrize(("scale", "factor"), [(0, 1), (0.0, 1), (2.0, 2)])
@pytest.mark.parametrize(("solver", "evaluations"), [("deis3", 7), ("euler", 7), ("heun", 13)])
def test_rows_evaluated(scale, factor, solver, evaluations, x, make_cond):
    rows = []

    def denoiser(x, sigma, cond):
        assert len(x) == len(cond)
        rows.append(len(x))
        return 0.5 * x

    SOLVERS[solver](guided(denoiser, make_cond(), scale), x, edm_grid(7))
    assert rows == [3 * factor] * evaluations
