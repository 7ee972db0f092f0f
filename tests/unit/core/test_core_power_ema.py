"""Power-function EMAs match their closed form and reconstruct other lengths."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn

from ediffi_core.ema import PowerEMA, reconstruct
from ediffi_core.ema_length import gamma_of, mix_of

BATCH, STEPS = 32, 400


@pytest.fixture(scope="module")
def trajectory():
    """Weights after every step: a decaying drift and noise. [STEPS+1, 6]"""
    rng = np.random.default_rng(0)
    time = np.arange(STEPS + 1)[:, None] / STEPS
    drift = np.exp(-5 * time) * rng.standard_normal(6) + time * rng.standard_normal(6)
    return drift + 0.05 * rng.standard_normal((STEPS + 1, 6))


def track(trajectory, lengths, every=STEPS):
    """→ snapshots (images, length, weights) at regular steps."""
    model = nn.Linear(3, 2, bias=False).double()

    def write(value):
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(value).view(2, 3))

    write(trajectory[0])
    ema, snapshots = PowerEMA(model, lengths), []
    for step in range(1, STEPS + 1):
        write(trajectory[step])
        ema.update(model, images=step * BATCH, batch=BATCH)
        if step % every == 0:
            snapshots += [
                (step * BATCH, length, {k: v.clone() for k, v in ema.weights[length].items()})
                for length in lengths
            ]
    return snapshots


@pytest.mark.parametrize("length", [0.02, 0.05, 0.10, 0.25])
def test_the_average_is_the_closed_formula(length, trajectory):
    """The weights of step k count ∫ (γ+1) s^γ / t^(γ+1) ds over that step."""
    ((_, _, found),) = track(trajectory, [length])
    edges = (np.arange(STEPS + 1) / STEPS) ** (gamma_of(length) + 1)
    expected = np.diff(edges) @ trajectory[1:]
    np.testing.assert_allclose(found["weight"].numpy().ravel(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("length", "gamma"), [(0.05, 16.97), (0.10, 6.94), (0.2, None), (0.01, None)]
)
def test_gamma_gives_the_relative_width(length, gamma):
    """σ_rel is the standard deviation of the weighting of time (EDM2 prints two of these γ)."""
    g = gamma_of(length)
    assert gamma is None or g == pytest.approx(gamma, abs=0.01)
    total, first, second = (
        quad(lambda s, p=p: (g + 1) * s ** (g + p), 0, 1, epsabs=1e-12)[0] for p in (0, 1, 2)
    )
    assert total == pytest.approx(1)
    assert math.sqrt(second - first**2) == pytest.approx(length, rel=1e-5)


@pytest.mark.parametrize("length", [0, -0.1, 12**-0.5, 1])
def test_lengths_that_no_power_has_are_refused(length):
    with pytest.raises(ValueError, match=r"must lie in \(0, 0.288\)"):
        gamma_of(length)


def away(a, b):
    return float((a["weight"].double() - b["weight"].double()).norm())


@pytest.mark.parametrize("length", [0.06, 0.075, 0.12, 0.15, 0.2])
def test_any_length_is_reconstructed(length, trajectory):
    """Sixteen snapshots of two lengths reconstruct an average that was not tracked."""
    snapshots = track(trajectory, [0.05, 0.10], every=STEPS // 16)
    ((images, _, direct),) = track(trajectory, [length])
    found = reconstruct(snapshots, images, length)
    stored = min(away(weights, direct) for at, _, weights in snapshots if at == images)
    assert away(found, direct) < 0.01 * direct["weight"].norm()
    assert away(found, direct) < 0.15 * stored


def test_an_earlier_time_is_reconstructed(trajectory):
    snapshots = track(trajectory, [0.05, 0.10], every=STEPS // 16)
    tracked = track(trajectory, [0.08], every=STEPS // 4)
    images, _, direct = tracked[2]
    found = reconstruct(snapshots, images, 0.08)
    assert away(found, direct) < 0.01 * direct["weight"].norm()


@pytest.mark.parametrize("which", [0, 5, -1])
def test_what_was_stored_is_reconstructed_as_it_is(which, trajectory):
    snapshots = track(trajectory, [0.05, 0.10], every=STEPS // 8)
    images, length, weights = snapshots[which]
    assert away(reconstruct(snapshots, images, length), weights) < 1e-6


def test_weights_keep_their_type(trajectory):
    snapshots = [
        (at, length, {"weight": w["weight"].bfloat16()})
        for at, length, w in track(trajectory, [0.05, 0.10], every=STEPS // 4)
    ]
    assert reconstruct(snapshots, STEPS * BATCH, 0.07)["weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("images", [0, -1, STEPS * BATCH + 1])
def test_times_without_snapshots_are_refused(images, trajectory):
    snapshots = track(trajectory, [0.05, 0.10], every=STEPS // 2)
    with pytest.raises(ValueError, match="last snapshot is at 12,800 images"):
        reconstruct(snapshots, images, 0.07)
    with pytest.raises(ValueError, match="last snapshot is at 0 images"):
        reconstruct([], images, 0.07)


def shares_of(snapshots, images, length):
    """Shares of the snapshots, by reconstructing unit vectors."""
    units = [(at, of, {"w": row}) for (at, of), row in zip(snapshots, torch.eye(len(snapshots)))]
    units = [(at, of, {"w": w["w"].double()}) for at, of, w in units]
    return reconstruct(units, images, length)["w"].numpy()


FEW = [
    [(1000, 0.05)],
    [(1000, 0.05), (1000, 0.10)],
    [(1000, 0.05), (1000, 0.05), (500, 0.10)],  # one of them twice
    [(at, length) for at in range(125, 1001, 125) for length in (0.05, 0.10)],
]


@pytest.mark.parametrize("snapshots", FEW)
@pytest.mark.parametrize("images", [130, 700, 1000])
@pytest.mark.parametrize("length", [0.03, 0.075, 0.28])
def test_what_snapshots_agree_on_stays_as_it_is(snapshots, images, length):
    """Shares add up to 1, so constant weights are reconstructed exactly."""
    still = [(at, of, {"w": torch.full((3,), 5.0)}) for at, of in snapshots]
    torch.testing.assert_close(
        reconstruct(still, images, length)["w"], torch.full((3,), 5.0), rtol=0, atol=1e-6
    )
    assert shares_of(snapshots, images, length).sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("snapshots", FEW[1:])
def test_no_other_mixture_of_weight_1_comes_closer(snapshots):
    """Reference: the weightings of time, integrated on a grid."""
    images, length = 800, 0.15
    time = (np.arange(40_000) + 0.5) / 40

    def weighting(at, of):
        g = gamma_of(of)
        return np.where(time < at, (g + 1) * (np.minimum(time, at) / at) ** g / at, 0)

    basis = np.stack([weighting(*s) for s in snapshots])
    best, rng = shares_of(snapshots, images, length), np.random.default_rng(0)

    def distance(shares):
        return ((shares @ basis - weighting(images, length)) ** 2).sum()

    for _ in range(20):
        step = rng.standard_normal(len(snapshots))
        other = best + 0.05 * (step - step.mean())
        assert distance(other) > distance(best) * (1 - 1e-6)
    size = (weighting(images, length) ** 2).sum()
    error = mix_of(snapshots, images, length).error
    assert error == pytest.approx(math.sqrt(distance(best) / size), rel=1e-3)


def test_a_stored_average_is_made_up_without_error():
    mix = mix_of(FEW[3], 1000, 0.1)
    assert mix.error < 1e-6
    assert mix.shares == pytest.approx([*[0] * 15, 1], abs=1e-6)
