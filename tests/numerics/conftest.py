"""An ODE with a known answer: eight narrow Gaussians on a circle, their exact denoiser."""

import math

import numpy as np
import pytest
import torch

torch.set_num_threads(1)

MODES, RADIUS, WIDTH = 8, 0.7, 0.05
STARTS = 2048


class Mixture:
    """2-D data from MODES Gaussians of standard deviation WIDTH. Exact in float64."""

    angles = 2 * math.pi * np.arange(MODES) / MODES
    means = RADIUS * np.stack([np.cos(angles), np.sin(angles)], axis=1)

    def denoise(self, x, sigma):
        """E[x₀ | x, σ]: shares of the modes by Bayes, each pulling to its own mean. [N, 2]"""
        means, total = torch.from_numpy(self.means).to(x.dtype), WIDTH**2 + float(sigma) ** 2
        share = torch.softmax(-(x[:, None] - means).square().sum(2) / (2 * total), dim=1)
        return (WIDTH**2 * x + float(sigma) ** 2 * (share @ means)) / total

    def slope(self, x, sigma):
        """``dx/dσ = −σ ∇ log p(x; σ)``, from the density, in numpy. [N, 2]"""
        total = WIDTH**2 + sigma**2
        away = x[:, None] - self.means
        logs = -(away**2).sum(2) / (2 * total)
        share = np.exp(logs - logs.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        return sigma * (share[..., None] * away).sum(1) / total

    def flow(self, x, sigma_max, *, steps):
        """Follows the ODE from σ_max to (all but) 0: classic Runge–Kutta in ln σ."""
        x, h = np.array(x), math.log(1e-6 / sigma_max) / steps

        def f(x, t):
            return math.exp(t) * self.slope(x, math.exp(t))

        for i in range(steps):
            t = math.log(sigma_max) + i * h
            k1 = f(x, t)
            k2 = f(x + h / 2 * k1, t + h / 2)
            k3 = f(x + h / 2 * k2, t + h / 2)
            k4 = f(x + h * k3, t + h)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return x


@pytest.fixture(scope="session")
def mixture():
    return Mixture()


@pytest.fixture(scope="session")
def starts():
    """``x ~ N(0, 80²)``, [STARTS, 2] float64."""
    return 80 * torch.from_numpy(np.random.default_rng(0).standard_normal((STARTS, 2)))


@pytest.fixture(scope="session")
def ends(mixture, starts):
    """Where the ODE carries the starts, to about 1e-6 (the steps of the tests leave 1e-3)."""
    return torch.from_numpy(mixture.flow(starts.numpy(), 80.0, steps=200))
