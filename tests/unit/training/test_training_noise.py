"""The noise that training draws, and how its losses are logged by noise level."""

import pytest
import torch

from ediffi_core.noise import Interval, NoiseDistribution
from pipelines.training.meters import Meters
from pipelines.training.parallel import Communicator
from pipelines.training.step import Draws, Outcome

NOISE = NoiseDistribution()
DROP = {"all": 0.1, "others": 0.1}
SETTINGS = {
    "seed": 0,
    "stream": "base/E1_1",
    "interval": [0.5, 1.0],
    "noise": {},
    "training": {"dropout": DROP},
}
INDEX = torch.arange(10_000)


def drawn(**more):
    return Draws({**SETTINGS, **more}, (), "cpu").sigma(INDEX)


def test_the_density_alone_decides_what_is_drawn():
    assert torch.equal(drawn(density=[[0.5, 1.0, 1.0]]), drawn())
    sigma = drawn(density=[[0.0, 0.5, 0.2], [0.5, 1.0, 0.8]])
    assert float((sigma < NOISE.sigma_at(0.5)).double().mean()) == pytest.approx(0.2, abs=1e-3)


def test_draws_outside_the_interval_are_in_no_bin():
    meters = Meters(Communicator(), Interval(0.5, 1.0), NOISE, bins=2, leap=None)
    sigma = NOISE.sigma(torch.tensor([0.1, 0.5, 0.6, 0.9], dtype=torch.float64))
    loss = torch.tensor([100.0, 1.0, 3.0, 5.0])
    meters.add(0, Outcome(sigma, loss, torch.tensor(1.0)), 0.0)
    meters.check(4)
    found = meters.summary(4)
    assert [v for k, v in found.items() if k.startswith("loss_bin/")] == [2.0, 5.0]
    assert found["loss"] == 109 / 4
