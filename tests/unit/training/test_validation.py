"""Validation of a training node: noise levels, loss weight, gains and their intervals."""

import pytest
import torch
from torch import nn

from ediffi_core import draws, tree
from ediffi_core.conditioning import Conditioning
from ediffi_core.noise import NoiseDistribution
from pipelines.training.parallel import Communicator
from pipelines.training.validation import Validation, gain_over_parent


class Held:
    """A small data set in memory."""

    def __init__(self, count):
        self.count = count
        self.x = draws.normal(0, "held", torch.arange(count), (3, 4, 4)) / 2

    def __len__(self):
        return self.count

    def rows(self, index):
        return self.x[index], Conditioning(pooled={"a": torch.zeros(len(index), 2)})


class Part(nn.Module):
    """Returns a fraction of its input."""

    def __init__(self, part, sigma_data=0.5):
        super().__init__()
        self.part, self.sigma_data = part, sigma_data

    def forward(self, x, sigma, cond):
        return self.part * x


SETTINGS = {
    "interval": [0.5, 1.0],
    "noise": {"P_mean": -1.2, "P_std": 1.2},
    "sigma_data": 0.5,
    "seed": 3,
}


@pytest.mark.parametrize("count", [55, 144, 233])
def test_noise_levels_of_an_image_are_unrelated_between_rounds(count):
    found = Validation(Held(count), SETTINGS, Communicator())
    sigma, _ = found.losses(Part(0.0), 6 * count)
    low, _ = tree.interval("E1_1").bounds(NoiseDistribution())
    assert float(sigma.min()) >= low
    quantile = NoiseDistribution().quantile(sigma).reshape(6, count) * 2 - 1
    pairs = torch.corrcoef(quantile)[*torch.triu_indices(6, 6, offset=1)]
    assert float(pairs.abs().mean()) < 0.7  # 1 where every round is nearly the same, as at 144
    spread = quantile.sort(dim=1)[0].diff(dim=1)
    assert float(spread.max()) < 3 / count


def test_more_draws_start_with_the_same_draws():
    held = Held(20)
    few, many = (Validation(held, SETTINGS, Communicator()).losses(Part(0.5), n) for n in (30, 100))
    assert torch.equal(few[0], many[0][:30])
    torch.testing.assert_close(few[1], many[1][:30])


def test_all_models_share_one_loss_weight():
    """The same function, built with another sigma_data."""
    found = Validation(Held(20), SETTINGS, Communicator())
    losses = [found.losses(Part(0.5, sigma_data), 40)[1] for sigma_data in (0.5, 0.6)]
    assert torch.equal(*losses)
    gain = found.gain_over_parent(*losses)
    assert gain["val_gain"] == gain["val_gain_low"] == gain["val_gain_high"] == 0


def test_the_interval_of_a_gain_is_over_images():
    """600 draws of twelve images are twelve independent values."""
    picture = torch.arange(600) % 12
    own = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parent = 1 + own[picture]
    once = gain_over_parent(parent[:12], torch.ones(12), picture[:12])
    again = gain_over_parent(parent, torch.ones(600), picture)
    for key, value in once.items():
        assert again[key] == pytest.approx(value, rel=1e-6)
    assert again["val_gain_high"] - again["val_gain_low"] == pytest.approx(
        2 * 2.201 * float(own.std()) / 12**0.5, rel=0.01
    )
