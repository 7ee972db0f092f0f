"""Preconditioning and loss against EDM's formulas (table 1, equations 7 and 8) in numpy."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from ediffi_core import draws
from ediffi_core.precond import Denoiser, coefficients, denoising_loss

SIGMAS = np.logspace(np.log10(0.0005), np.log10(80), 57)
SIGMA_DATA = [0.5, 0.31]


class Raw(nn.Module):
    """A raw network without weights that mixes its inputs and records them."""

    def forward(self, x, c_noise, cond):
        self.seen = x, c_noise, cond
        return torch.sin(3 * x) + c_noise[:, None, None, None] * cond[:, None, None, None]


class Answer(nn.Module):
    """Returns a fixed answer."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x, c_noise, cond):
        return self.value


def edm(sigma, sigma_data):
    """EDM's table 1, as printed: c_skip, c_out, c_in, c_noise, λ."""
    total = sigma**2 + sigma_data**2
    return (
        sigma_data**2 / total,
        sigma * sigma_data / np.sqrt(total),
        1 / np.sqrt(total),
        np.log(sigma) / 4,
        total / (sigma * sigma_data) ** 2,
    )


def pictures(rows, seed=0, shape=(3, 4, 5)):
    """Images and noise of one seed, [rows, *shape] float64 numpy."""
    rng = np.random.default_rng(seed)
    return 0.5 * rng.standard_normal((rows, *shape)), rng.standard_normal((rows, *shape))


@pytest.mark.parametrize("sigma_data", SIGMA_DATA)
def test_coefficients_are_edm_s(sigma_data):
    found = coefficients(torch.from_numpy(SIGMAS), sigma_data)
    for value, expected in zip(found, edm(SIGMAS, sigma_data), strict=True):
        assert value.dtype == torch.float64
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-12, atol=1e-15)
    assert list(found._fields) == ["c_skip", "c_out", "c_in", "c_noise", "weight"]


@pytest.mark.parametrize("sigma_data", SIGMA_DATA)
def test_inputs_and_targets_have_unit_variance_and_errors_unit_weight(sigma_data):
    """The criteria behind the formulas (EDM appendix B.6), for data of variance σ_data²."""
    c = coefficients(torch.from_numpy(SIGMAS), sigma_data)
    s2, d2 = torch.from_numpy(SIGMAS) ** 2, sigma_data**2
    one = torch.ones_like(s2)
    torch.testing.assert_close(c.c_in**2 * (s2 + d2), one)
    target = ((1 - c.c_skip) ** 2 * d2 + c.c_skip**2 * s2) / c.c_out**2
    torch.testing.assert_close(target, one)
    torch.testing.assert_close(c.weight * c.c_out**2, one)


@pytest.mark.parametrize("sigma_data", SIGMA_DATA)
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-11), (np.float32, 2e-5)])
def test_denoiser_is_edm_equation_7(dtype, rtol, sigma_data):
    x, _ = pictures(len(SIGMAS))
    x = (x * np.maximum(1, SIGMAS)[:, None, None, None]).astype(dtype)
    cond = torch.linspace(-1, 1, len(SIGMAS)).double().to(torch.from_numpy(x).dtype)
    found = Denoiser(Raw(), sigma_data)(torch.from_numpy(x), torch.from_numpy(SIGMAS), cond)
    c_skip, c_out, c_in, c_noise, _ = (c[:, None, None, None] for c in edm(SIGMAS, sigma_data))
    raw = np.sin(3 * c_in * x) + c_noise * cond.double().numpy()[:, None, None, None]
    assert found.numpy().dtype == dtype
    np.testing.assert_allclose(found.numpy(), c_skip * x + c_out * raw, rtol=rtol, atol=rtol)


def test_one_sigma_for_all_is_the_same_sigma_for_each():
    net = Raw()
    x = torch.from_numpy(pictures(4)[0]).float()
    cond, sigma = torch.arange(4.0), torch.tensor(0.7, dtype=torch.float64)
    together = Denoiser(net)(x, sigma, cond)
    assert net.seen[1].shape == (4,)
    assert net.seen[2] is cond
    assert torch.equal(together, Denoiser(net)(x, sigma.expand(4), cond))
    alone = [Denoiser(net)(x[[i]], sigma, cond[[i]]) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_a_half_precision_network_is_wrapped_in_float32():
    class Half(nn.Module):
        def forward(self, x, c_noise, cond):
            return torch.ones_like(x, dtype=torch.bfloat16)

    x = torch.from_numpy(pictures(2)[0]).float()
    sigma = torch.tensor([0.01, 20.0], dtype=torch.float64)
    found = Denoiser(Half())(x, sigma, torch.zeros(2))
    assert found.dtype == torch.float32
    assert torch.equal(found, Denoiser(Answer(torch.ones_like(x)))(x, sigma, torch.zeros(2)))


@pytest.mark.parametrize("sigma_data", SIGMA_DATA)
def test_loss_is_edm_equation_8(sigma_data):
    """``λ(σ) ‖D(x + σε; σ) − x‖²``, mean over pixels, one value per row."""
    x, eps = pictures(len(SIGMAS))
    cond = torch.linspace(-1, 1, len(SIGMAS)).double()
    found = denoising_loss(
        Denoiser(Raw(), sigma_data),
        sigma_data,
        torch.from_numpy(x),
        torch.from_numpy(SIGMAS),
        torch.from_numpy(eps),
        cond,
    )
    c_skip, c_out, c_in, c_noise, weight = edm(SIGMAS, sigma_data)
    for i, sigma in enumerate(SIGMAS):
        noisy = x[i] + sigma * eps[i]
        raw = np.sin(3 * c_in[i] * noisy) + c_noise[i] * cond[i].item()
        error = c_skip[i] * noisy + c_out[i] * raw - x[i]
        expected = weight[i] * (error**2).mean()
        assert found[i].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_an_error_of_the_network_weighs_the_same_at_every_noise(dtype, rtol):
    """An error δ of F costs mean δ², with gradient 2 δ / pixels, for every σ."""
    x, eps = (torch.from_numpy(a) for a in pictures(len(SIGMAS)))
    sigma = torch.from_numpy(SIGMAS)
    c = [v[:, None, None, None] for v in coefficients(sigma, 0.5)]
    target = (x - c[0] * (x + sigma[:, None, None, None] * eps)) / c[1]
    delta = torch.linspace(-1, 1, x[0].numel(), dtype=torch.float64).view_as(x[0])
    answer = (target + delta).to(dtype).requires_grad_()
    loss = denoising_loss(
        Denoiser(Answer(answer)), 0.5, x.to(dtype), sigma, eps.to(dtype), torch.zeros(len(x))
    )
    assert loss.dtype == dtype
    expected = delta.square().mean().to(dtype).expand(len(x))
    torch.testing.assert_close(loss, expected, rtol=rtol, atol=0)
    loss.sum().backward()
    pull = (2 * delta / delta.numel()).to(dtype).expand_as(x)
    torch.testing.assert_close(answer.grad, pull, rtol=rtol, atol=rtol / delta.numel())


def test_the_best_loss_on_gaussian_data_is_one_at_every_noise():
    """For x ~ N(0, σ_data²) the best F is 0, and λ σ² σ_data² / (σ² + σ_data²) = 1."""
    rows, pixels = 64, 400
    sigma = torch.logspace(-3, 2, rows, dtype=torch.float64)
    index = torch.arange(rows)
    x = 0.5 * draws.normal(0, "test/x", index, (1, 20, 20))
    eps = draws.normal(0, "test/eps", index, (1, 20, 20))
    loss = denoising_loss(Denoiser(Answer(torch.zeros(1))), 0.5, x, sigma, eps, index)
    deviation = (2 / pixels) ** 0.5  # of a mean of squared standard normals
    assert ((loss - 1).abs() < 5 * deviation).all()
    assert (loss.mean() - 1).abs() < 4 * deviation / rows**0.5


def test_a_residual_denoiser_predicts_the_difference_from_the_enlarged_picture(
    efficient, make_net, make_cond
):
    """``D(x; σ) = up + D'(x − up; σ)``, D' an ordinary denoiser with the same network."""
    net, cond = make_net(config=efficient), make_cond(2, low_res=8)
    x, sigma = torch.randn(2, 3, 16, 16), torch.tensor([0.1, 3.0], dtype=torch.float64)
    up = torch.nn.functional.interpolate(
        cond.low_res, size=(16, 16), mode="bilinear", align_corners=False
    )
    expected = up + Denoiser(net, 0.15)(x - up, sigma, cond)
    found = Denoiser(net, 0.15, residual=True)(x, sigma, cond)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match="set low_res"):
        Denoiser(net, 0.15, residual=True)(x, sigma, make_cond(2))


def test_a_residual_denoiser_that_has_learned_nothing_gives_the_enlarged_picture(
    efficient, make_cond
):
    """Approximately, because the difference is hardly known at high noise."""
    config = dataclasses.replace(efficient, residual=True)
    cond, x = make_cond(2, low_res=8), 80 * torch.randn(2, 3, 16, 16)
    denoiser = Denoiser.of(config, 0.15)
    assert denoiser.residual and denoiser.sigma_data == 0.15
    found = denoiser(x, torch.tensor(80.0, dtype=torch.float64), cond)
    torch.testing.assert_close(found, cond.upsampled_low_res(x), rtol=0, atol=2e-3)
