"""The EMA against its closed form."""

import numpy as np
import pytest
import torch
from torch import nn

from ediffi_core.ema import EMA

BATCH = 64


def run(halflife, rampup, steps, seed=0):
    """EMA of random weights at every step, and the weights."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((steps + 1, 2, 3))
    model = nn.Linear(3, 2, bias=False).double()

    def write(value):
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(value))

    write(values[0])
    ema = EMA(model, halflife, rampup)
    for step in range(1, steps + 1):
        write(values[step])
        ema.update(model, images=step * BATCH, batch=BATCH)
    return ema.weights["weight"].numpy(), values


@pytest.mark.parametrize("halflife", [100.0, 1000.0, 1e9])
def test_the_average_is_the_closed_formula(halflife):
    """Σ_k (1 − β_k) Π_{j>k} β_j w_k, β_k = ½^(batch / min(half-life, 0.05 images))."""
    steps = 50
    found, values = run(halflife, 0.05, steps)
    seen = BATCH * np.arange(1, steps + 1)
    beta = 0.5 ** (BATCH / np.minimum(halflife, 0.05 * seen))
    shares = np.array([(1 - beta[k]) * beta[k + 1 :].prod() for k in range(steps)])
    expected = beta.prod() * values[0] + np.tensordot(shares, values[1:], 1)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_a_half_life_of_images_forgets_half():
    """After the ramp-up, a jump from 0 to 1 reaches one half after one half-life."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    ema = EMA(model, halflife_images=640)
    nn.init.ones_(model.weight)
    for step in range(10):
        ema.update(model, images=1_000_000 + step * BATCH, batch=BATCH)
    assert ema.weights["weight"].item() == pytest.approx(0.5, abs=1e-12)


def test_the_ramp_up_forgets_the_start():
    """At 20 batches the ramped half-life is one batch, whatever the full one."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    ema = EMA(model, halflife_images=1e9)
    nn.init.ones_(model.weight)
    ema.update(model, images=20 * BATCH, batch=BATCH)
    assert ema.weights["weight"].item() == pytest.approx(0.5, abs=1e-12)


def test_the_average_is_a_copy():
    model = nn.Linear(2, 2)
    ema = EMA(model, 1000)
    before = {k: v.clone() for k, v in ema.weights.items()}
    with torch.no_grad():
        model.weight.add_(1)
    assert all(torch.equal(ema.weights[k], v) for k, v in before.items())
    assert not ema.weights["weight"].requires_grad


@pytest.mark.parametrize("halflife", [0, -5])
def test_a_half_life_must_be_positive(halflife):
    with pytest.raises(ValueError, match=f"must be positive, got {halflife} images"):
        EMA(nn.Linear(1, 1), halflife)
