"""The noise that training draws, and how its losses are logged by noise level."""

import pytest
import torch
from torch import nn

from ediffi_core import draws
from ediffi_core.loss_weight import LossFactor
from ediffi_core.noise import Interval, NoiseDistribution
from ediffi_core.precond import Denoiser, denoising_loss
from pipelines.spec.training import Training
from pipelines.training.meters import Meters
from pipelines.training.parallel import Communicator
from pipelines.training.step import Draws, Outcome, Step

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
    sigma = NOISE.sigma(torch.tensor([0.1, 0.55, 0.6, 0.9], dtype=torch.float64))
    loss = torch.tensor([100.0, 1.0, 3.0, 5.0])
    meters.add(0, Outcome(sigma, loss, torch.tensor(1.0)), 0.0)
    meters.check(4)
    found = meters.summary(4)
    assert [v for k, v in found.items() if k.startswith("loss_bin/")] == [2.0, 5.0]
    assert found["loss"] == 109 / 4


class Scaled(nn.Module):
    """A raw network of one weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))

    def forward(self, x, c_noise, cond):
        return self.weight * x


class NoConditioning:
    def keep(self, *_):
        return self

    def __getitem__(self, _):
        return self


def stepped(weight, micro_batch=None):
    """→ the outcome of one step on 64 images, and the gradient before it was clipped."""
    model = Denoiser(Scaled())
    options = Training(batch=64, loss_weight=weight).settings()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    source = Draws({**SETTINGS, "interval": [0.0, 1.0]}, (), "cpu")
    step = Step(model, model, optimizer, source, Communicator(), options, micro_batch)
    index = torch.arange(64)
    x = draws.normal(0, "pictures", index, (3, 4, 4))
    return step(index, x, NoConditioning(), 0.0), (index, x, source)


@pytest.mark.parametrize("weight", ["min_snr", "p2"])
@pytest.mark.parametrize("micro_batch", [None, 16])
def test_a_loss_weight_changes_the_gradient_and_no_reported_loss(weight, micro_batch):
    plain, (index, x, source) = stepped("edm")
    outcome, _ = stepped(weight, micro_batch)
    torch.testing.assert_close(outcome.loss, plain.loss)
    assert torch.equal(outcome.sigma, plain.sigma)

    model = Denoiser(Scaled())
    sigma = source.sigma(index)
    loss = denoising_loss(model, 0.5, x, sigma, source.eps(index, x.shape[1:]), None)
    factor = LossFactor.of(weight, NOISE, 0.5)(sigma)
    (loss * factor).mean().backward()
    norm = float(model.net.weight.grad.abs())
    assert float(outcome.grad_norm) == pytest.approx(norm, rel=1e-5)
    assert float(plain.grad_norm) != pytest.approx(norm, rel=1e-2)
