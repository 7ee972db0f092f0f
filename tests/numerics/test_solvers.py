"""Solvers against independent ones, exact answers, and the error each leaves per evaluation."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from ediffi_core.noise import edm_grid
from ediffi_core.sampling import SOLVERS, Churn

# DEIS counts the degree of its polynomial, linear multistep methods the slopes behind it.
DEIS = [(name, 1 + int(name.removeprefix("deis"))) for name in SOLVERS if "deis" in name]


def lms(denoise, x, sigmas, order):
    """k-diffusion's linear multistep method, derived anew: ∫ of each Lagrange polynomial in σ
    through the last ``order`` slopes, by adaptive quadrature. Also on the step to 0."""
    slopes = []
    for step, (sigma, following) in enumerate(pairwise(sigmas.tolist())):
        slopes = [(x - denoise(x, sigma)) / sigma, *slopes][:order]
        nodes = [float(sigmas[step - j]) for j in range(len(slopes))]
        for j, slope in enumerate(slopes):

            def lagrange(tau, j=j, nodes=nodes):
                others = [n for i, n in enumerate(nodes) if i != j]
                return math.prod((tau - n) / (nodes[j] - n) for n in others)

            x = x + quad(lagrange, sigma, following)[0] * slope
    return x


def edm_algorithm_1(denoise, x, sigmas):
    """EDM's deterministic sampler, line by line."""
    t = sigmas.tolist()
    for i in range(len(t) - 1):
        d = (x - denoise(x, t[i])) / t[i]
        ahead = x + (t[i + 1] - t[i]) * d
        if t[i + 1] != 0:
            d_ahead = (ahead - denoise(ahead, t[i + 1])) / t[i + 1]
            ahead = x + (t[i + 1] - t[i]) * (d / 2 + d_ahead / 2)
        x = ahead
    return x


def error(found, ends):
    """Median over the pictures of the L2 distance."""
    return float((found - ends).norm(dim=1).median())


def test_the_exact_denoiser_is_the_slope_of_the_density(mixture, starts):
    """Tweedie: ``(x − D)/σ = −σ ∇ log p``; the reference below shares no code with it."""
    for sigma in (80, 3, 0.3, 0.01):
        x = starts / 80 * math.hypot(sigma, 0.5)
        found = (x - mixture.denoise(x, sigma)) / sigma
        np.testing.assert_allclose(found, mixture.slope(x.numpy(), sigma), atol=1e-10)


def test_the_reference_arrives_at_the_data(mixture, ends):
    """Squared distance to the nearest mode is 2 WIDTH² on average, and every mode gets its 1/8."""
    away = (ends[:, None] - torch.from_numpy(mixture.means)).norm(dim=2)
    assert away.min(dim=1).values.square().mean() == pytest.approx(2 * 0.05**2, rel=0.1)
    share = away.argmin(dim=1).bincount(minlength=8) / len(ends)
    assert (share - 1 / 8).abs().max() < 4 * (1 / 8 * 7 / 8 / len(ends)) ** 0.5


# Median L2 error after 10, 20, 25 and 35 evaluations, the last step to 0 included.
EVALUATIONS = (10, 20, 25, 35)
ERRORS = {
    "euler": (5.6e-2, 2.5e-2, 2.0e-2, 1.4e-2),
    "deis1": (3.0e-2, 9.4e-3, 6.5e-3, 3.6e-3),
    "deis2": (2.5e-2, 5.8e-3, 3.8e-3, 1.8e-3),
    "deis3": (2.2e-2, 4.4e-3, 2.7e-3, 1.1e-3),
    "dpm++2m": (1.3e-1, 1.9e-2, 9.5e-3, 3.6e-3),
}


@pytest.mark.slow
@pytest.mark.parametrize("solver", ERRORS)
def test_error_per_evaluation(solver, mixture, starts, ends):
    found = [
        error(SOLVERS[solver](mixture.denoise, starts, edm_grid(n)), ends) for n in EVALUATIONS
    ]
    assert found == pytest.approx(ERRORS[solver], rel=0.1)


def test_error_of_heun_s_two_evaluations_a_step(mixture, starts, ends):
    """5, 10, 13 and 18 steps cost 9, 19, 25 and 35 evaluations."""
    found = [
        error(SOLVERS["heun"](mixture.denoise, starts, edm_grid(n)), ends) for n in (5, 10, 13, 18)
    ]
    assert found == pytest.approx((1.6, 9.3e-2, 3.6e-2, 1.4e-2), rel=0.1)


def test_the_experiment_is_the_one_others_report(mixture, starts, ends):
    """k-diffusion's LMS of order 4, four slopes, is reported to leave these errors here."""
    found = [error(lms(mixture.denoise, starts, edm_grid(n), 4), ends) for n in EVALUATIONS]
    assert found == pytest.approx((2.2e-2, 4.4e-3, 2.7e-3, 1.1e-3), rel=0.1)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 25])
@pytest.mark.parametrize(("solver", "order"), DEIS)
def test_deis_is_the_linear_multistep_method_of_its_order(solver, order, steps, mixture, starts):
    """To the last level before 0, where DEIS lands on the denoised picture instead."""
    x, levels = starts[:256], edm_grid(steps + 1)[:-1]
    found = SOLVERS[solver](mixture.denoise, x, levels)
    torch.testing.assert_close(found, lms(mixture.denoise, x, levels, order), rtol=0, atol=1e-9)


def test_another_order_is_another_answer(mixture, starts):
    """The premise of the test above."""
    x, levels = starts[:256], edm_grid(11)[:-1]
    outs = [lms(mixture.denoise, x, levels, order) for order in (1, 2, 3, 4)]
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(outs) for b in outs[:i])


@pytest.mark.parametrize("steps", [1, 2, 5, 18])
def test_heun_is_edm_s_algorithm_1(steps, mixture, starts):
    x, grid = starts[:256], edm_grid(steps)
    found = SOLVERS["heun"](mixture.denoise, x, grid)
    expected = edm_algorithm_1(mixture.denoise, x, grid)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def dpm_solver_pp_2m(denoise, x, sigmas):
    """Algorithm 2 of DPM-Solver++ (arXiv 2211.01095), line by line in numpy, in its own terms:
    α = 1, λ = ln(α/σ), x₀ predictions. To the last level before 0."""

    def x0(x, t):
        return denoise(torch.from_numpy(x), t).numpy()

    sigma = sigmas.numpy()
    lam = -np.log(sigma)
    x, buffer = x.numpy(), []
    for i in range(1, len(sigma)):
        h = lam[i] - lam[i - 1]
        buffer.append(x0(x, sigma[i - 1]))
        if i == 1:
            d = buffer[-1]
        else:
            r = (lam[i - 1] - lam[i - 2]) / h
            d = (1 + 1 / (2 * r)) * buffer[-1] - 1 / (2 * r) * buffer[-2]
        x = sigma[i] / sigma[i - 1] * x - (np.exp(-h) - 1) * d
    return torch.from_numpy(x)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 25])
def test_dpm_pp_2m_is_the_paper_s_algorithm(steps, mixture, starts):
    x, levels = starts[:256], edm_grid(steps + 1)[:-1]
    found = SOLVERS["dpm++2m"](mixture.denoise, x, levels)
    expected = dpm_solver_pp_2m(mixture.denoise, x, levels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def edm_algorithm_2(denoise, x, sigmas, noise, churn, lo, hi, s_noise, second_order=True):
    """EDM's stochastic sampler, line by line in numpy."""
    t, n = sigmas.numpy(), len(sigmas) - 1
    x = x.numpy()

    def d(x, t):
        return (x - denoise(torch.from_numpy(x), t).numpy()) / t

    for i in range(n):
        gamma = min(churn / n, np.sqrt(2) - 1) if lo <= t[i] <= hi else 0
        eps = s_noise * noise(i).numpy()
        t_hat = t[i] + gamma * t[i]
        x_hat = x + np.sqrt(t_hat**2 - t[i] ** 2) * eps
        slope = d(x_hat, t_hat)
        x = x_hat + (t[i + 1] - t_hat) * slope
        if t[i + 1] != 0 and second_order:
            x = x_hat + (t[i + 1] - t_hat) * (slope + d(x, t[i + 1])) / 2
    return torch.from_numpy(x)


def fresh(step):
    return torch.from_numpy(np.random.default_rng(step).standard_normal((256, 2)))


@pytest.mark.parametrize("amount", [3.0, 30.0, 1e3])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_churn_is_edm_s_algorithm_2(solver, amount, mixture, starts):
    x, grid = starts[:256], edm_grid(18)
    churn = Churn(amount=amount, noise=fresh, sigma_min=0.05, sigma_max=20, scale=1.01)
    found = SOLVERS[solver](mixture.denoise, x, grid, churn=churn)
    expected = edm_algorithm_2(
        mixture.denoise, x, grid, fresh, amount, 0.05, 20, 1.01, solver == "heun"
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert (found - SOLVERS[solver](mixture.denoise, x, grid)).abs().max() > 1e-2


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_no_churn_is_the_solver_itself(solver, mixture, starts):
    x, grid = starts[:256], edm_grid(18)
    plain = SOLVERS[solver](mixture.denoise, x, grid)
    for churn in (
        Churn(amount=0, noise=fresh),
        Churn(amount=30, noise=fresh, sigma_min=81, sigma_max=100),
    ):
        assert torch.equal(SOLVERS[solver](mixture.denoise, x, grid, churn=churn), plain)


def test_churn_stays_on_the_data(mixture, starts):
    """Fresh noise is denoised again: squared distances to the modes remain 2 WIDTH²."""
    churn = Churn(
        amount=40, noise=lambda i: torch.from_numpy(np.random.default_rng(i).normal(size=(2048, 2)))
    )
    found = SOLVERS["heun"](mixture.denoise, starts, edm_grid(64), churn=churn)
    away = (found[:, None] - torch.from_numpy(mixture.means)).norm(dim=2).min(dim=1).values
    assert away.square().mean() == pytest.approx(2 * 0.05**2, rel=0.1)


@pytest.mark.parametrize(
    ("solver", "order"),
    [("euler", 1), ("heun", 2), *DEIS, ("dpm++2m", 2)],
)
def test_halving_the_steps_divides_the_error_by_two_to_the_order(solver, order):
    """On Gaussian data, where ``x(σ) ∝ sqrt(σ² + σ_data²)``; from σ_max to σ_min."""

    def denoise(x, sigma):
        return 0.25 / (0.25 + float(sigma) ** 2) * x

    start = torch.tensor([80.0], dtype=torch.float64)
    exact = 80 * math.hypot(0.002, 0.5) / math.hypot(80, 0.5)
    errors = [
        abs(float(SOLVERS[solver](denoise, start, edm_grid(n)[:-1])) - exact) for n in (160, 320)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)
