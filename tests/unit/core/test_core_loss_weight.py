"""Training weights against the formulas of their papers, and their factor on EDM's loss."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from ediffi_core.loss_weight import LossFactor, x0_weight
from ediffi_core.noise import NoiseDistribution
from ediffi_core.precond import coefficients

SIGMA = np.logspace(-3, 2, 101)
NAMES = ["edm", "min_snr", "p2"]


def test_min_snr_is_the_paper_s_in_terms_of_the_predicted_noise():
    """Hang et al.: min(SNR, γ) / SNR for a network that predicts ε; its error is SNR that of x."""
    snr = 1 / SIGMA**2
    of_noise = np.minimum(snr, 5.0) / snr
    found = x0_weight("min_snr", torch.from_numpy(SIGMA), 0.5)
    np.testing.assert_allclose(found.numpy(), of_noise * snr, rtol=1e-12)


def test_p2_is_the_paper_s_in_terms_of_its_diffusion():
    """Choi et al., equation 8: 1 / (1 + SNR), with SNR = ᾱ / (1 − ᾱ) and L_simple = ‖ε − ε̂‖²."""
    alpha_bar = 1 / (1 + SIGMA**2)
    snr = alpha_bar / (1 - alpha_bar)
    found = x0_weight("p2", torch.from_numpy(SIGMA), 0.5)
    # x = (x_t − √(1−ᾱ) ε) / √ᾱ, so the error of ε is ᾱ/(1−ᾱ) times the error of x.
    np.testing.assert_allclose(found.numpy(), snr / (1 + snr), rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("noise", "sigma_data"), [((-1.2, 1.2), 0.5), ((-0.4, 1.7), 0.15)])
def test_the_mean_factor_over_p_of_sigma_is_1(name, noise, sigma_data):
    p = NoiseDistribution(P_mean=noise[0], P_std=noise[1])
    factor = LossFactor.of(name, p, sigma_data)

    def integrand(z):
        sigma = torch.tensor(np.exp(noise[0] + noise[1] * z), dtype=torch.float64)
        return float(factor(sigma)) * stats.norm.pdf(z)

    assert integrate.quad(integrand, -9, 9, limit=200)[0] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_factor_times_lambda_is_the_weight_up_to_a_constant(name):
    sigma = torch.from_numpy(SIGMA)
    factor = LossFactor.of(name, NoiseDistribution(), 0.5)
    weight = factor(sigma) * coefficients(sigma, 0.5).weight
    ratio = weight / x0_weight(name, sigma, 0.5)
    torch.testing.assert_close(ratio, torch.full_like(ratio, factor.scale))
    assert name != "edm" or torch.equal(factor(sigma), torch.ones_like(sigma))


def test_an_unknown_weight_is_refused():
    with pytest.raises(ValueError, match="no loss weight 'snr'; write one of edm, min_snr, p2"):
        x0_weight("snr", torch.ones(1), 0.5)
