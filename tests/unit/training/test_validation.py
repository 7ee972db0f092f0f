"""What a training node measures: noise levels by round, one weight, gains by picture."""

import pytest
import torch
from torch import nn

from ediffi_core import draws, tree
from ediffi_core.conditioning import Conditioning
from ediffi_core.noise import NoiseDistribution
from pipelines.training.parallel import World
from pipelines.training.validation import Validation, against


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
    """Answers a part of what it is shown."""

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
def test_a_picture_s_noise_levels_are_unrelated_from_round_to_round(count):
    found = Validation(Held(count), SETTINGS, World())
    sigma, _ = found.losses(Part(0.0), 6 * count)
    low, _ = tree.interval("E1_1").bounds(NoiseDistribution())
    assert float(sigma.min()) >= low
    quantile = NoiseDistribution().quantile(sigma).reshape(6, count) * 2 - 1
    pairs = torch.corrcoef(quantile)[*torch.triu_indices(6, 6, offset=1)]
    assert float(pairs.abs().mean()) < 0.7  # 1 where every round is nearly the same, as at 144
    spread = quantile.sort(dim=1)[0].diff(dim=1)
    assert float(spread.max()) < 3 / count


def test_more_draws_begin_with_the_same():
    held = Held(20)
    few, many = (Validation(held, SETTINGS, World()).losses(Part(0.5), n) for n in (30, 100))
    assert torch.equal(few[0], many[0][:30])
    torch.testing.assert_close(few[1], many[1][:30])


def test_whoever_is_asked_has_one_weight():
    """The same function, said to be made for another sigma_data."""
    found = Validation(Held(20), SETTINGS, World())
    losses = [found.losses(Part(0.5, sigma_data), 40)[1] for sigma_data in (0.5, 0.6)]
    assert torch.equal(*losses)
    gain = found.against(*losses)
    assert gain["val_gain"] == gain["val_gain_low"] == gain["val_gain_high"] == 0


def test_a_gain_s_interval_is_by_picture():
    """Twelve pictures drawn fifty times each: what is a picture's own is known of twelve only."""
    picture = torch.arange(600) % 12
    own = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parent = 1 + own[picture]
    once = against(parent[:12], torch.ones(12), picture[:12])
    again = against(parent, torch.ones(600), picture)
    for key, value in once.items():
        assert again[key] == pytest.approx(value, rel=1e-6)
    assert again["val_gain_high"] - again["val_gain_low"] == pytest.approx(
        2 * 2.201 * float(own.std()) / 12**0.5, rel=0.01
    )
