"""Moments, distances, intervals and validation losses against closed forms."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from ediffi_core import draws
from ediffi_core.metrics import (
    Estimate,
    Moments,
    by_noise_level,
    by_picture,
    clip_scores,
    frechet_distance,
    kernel_distance,
    paired_gain,
    student_t,
    validation_losses,
)
from ediffi_core.noise import NoiseDistribution
from ediffi_core.precond import Denoiser, denoising_loss
from ediffi_core.tree import interval

NOISE = NoiseDistribution()


def features(rows, dim, seed):
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((dim, dim))
    return rng.standard_normal((rows, dim)) @ mixing + 3 * rng.standard_normal(dim) + 50


def moments(mean, covariance, count=1000):
    mean, covariance = torch.as_tensor(mean).double(), torch.as_tensor(covariance).double()
    return Moments(count, mean, covariance * (count - 1))


@pytest.mark.parametrize("sizes", [[97], [1, 96], [50, 46, 1], [1] * 97, [13, 7, 40, 37]])
def test_merged_moments_are_those_of_everything_at_once(sizes):
    x = features(97, 5, 0)
    parts = torch.from_numpy(x).split(sizes)
    total = Moments.of(parts[0])
    for part in parts[1:]:
        total = total + Moments.of(part)
    assert total.count == 97
    np.testing.assert_allclose(total.mean.numpy(), x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(total.covariance.numpy(), np.cov(x.T), rtol=1e-9)


def test_float32_features_are_added_up_in_float64():
    x = torch.from_numpy(features(200, 3, 1)).float()
    assert Moments.of(x).scatter.dtype == torch.float64
    np.testing.assert_allclose(Moments.of(x).covariance, np.cov(x.double().numpy().T), rtol=1e-12)


def test_one_picture_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2 pictures, got 1"):
        _ = Moments.of(torch.ones(1, 3)).covariance


@pytest.mark.parametrize("dim", [1, 2, 16])
def test_frechet_distance_is_scipy_s(dim):
    x, y = features(300, dim, 2), features(200, dim, 3)
    cx, cy = np.atleast_2d(np.cov(x.T)), np.atleast_2d(np.cov(y.T))
    root = np.atleast_2d(linalg.sqrtm(cx @ cy)).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cx + cy - 2 * root)
    a, b = Moments.of(torch.from_numpy(x)), Moments.of(torch.from_numpy(y))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-7)


def test_frechet_distance_of_gaussians_in_closed_form():
    """Commuting covariances: ‖Δμ‖² + Σ (√a − √b)², also where one is singular."""
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    va, vb = np.array([4.0, 1.0, 0.0, 9.0]), np.array([1.0, 1.0, 0.25, 0.0])
    a = moments(np.zeros(4), rotation * va @ rotation.T)
    b = moments(rotation @ [1, 2, 0, 0], rotation * vb @ rotation.T)
    assert frechet_distance(a, b) == pytest.approx(5 + 1 + 0 + 0.25 + 9, rel=1e-7)
    shift = moments(rotation @ [0, 0, 3, 4], rotation * va @ rotation.T)
    assert frechet_distance(a, shift) == pytest.approx(25, rel=1e-7)


def test_clip_score_is_the_mean_cosine():
    image, text = (
        torch.tensor([[1.0, 0], [3, 4], [0, 2]]),
        torch.tensor([[5.0, 0], [4, 3], [0, -1]]),
    )
    assert float(clip_scores(image, text).mean()) == pytest.approx((1 + 24 / 25 - 1) / 3, abs=1e-12)


COUNT = 23


@pytest.fixture
def batches(make_cond):
    everything = make_cond(COUNT)
    pictures = draws.normal(9, "pictures", torch.arange(COUNT), (3, 8, 8)) / 2

    return lambda index: (pictures[index], everything[index])


def evaluate(denoiser, batches, batch, seed=4):
    index = torch.arange(COUNT)
    u = draws.rotated(seed, "validation/sigma", index, COUNT)
    sigma = interval("E3_5").draw(u, NOISE)
    loss = validation_losses(
        denoiser, 0.5, batches, index=index, sigma=sigma, batch=batch, seed=seed
    )
    return sigma, loss


def test_validation_draws_are_the_same_for_every_model_and_batch_size(make_net, batches):
    first, second = Denoiser(make_net(0)), Denoiser(make_net(1))
    _, loss = evaluate(first, batches, COUNT)
    for batch in (1, 4, 10, 100):
        _, loss_again = evaluate(first, batches, batch)
        torch.testing.assert_close(loss_again, loss, rtol=1e-5, atol=1e-6)
    _, other_loss = evaluate(second, batches, 4)
    assert not torch.isclose(other_loss, loss).any()


def test_both_models_see_the_same_noisy_pictures(batches):
    class Recorder(torch.nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale, self.seen = scale, []

        def forward(self, x, sigma, cond):
            self.seen.append(x.clone())
            return self.scale * x

    zero, half = Recorder(0.0), Recorder(0.5)
    sigma, loss = evaluate(zero, batches, 7)
    evaluate(half, batches, 5)
    assert torch.equal(torch.cat(zero.seen), torch.cat(half.seen))
    # A denoiser that answers 0 leaves λ(σ) times the mean square of the picture.
    x, cond = batches(torch.arange(COUNT))
    expected = (sigma**2 + 0.25) / (sigma * 0.5) ** 2 * x.double().square().mean((1, 2, 3))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    eps = (torch.cat(zero.seen) - x) / sigma[:, None, None, None]
    torch.testing.assert_close(
        loss, denoising_loss(zero, 0.5, x, sigma, eps.float(), cond), rtol=1e-5, atol=0
    )
    assert abs(eps.mean()) < 5 / eps.numel() ** 0.5
    assert abs(eps.square().mean() - 1) < 5 * (2 / eps.numel()) ** 0.5


def test_the_interval_of_pictures_that_are_drawn_again_and_again_covers_the_truth():
    """Losses with an image part and a draw part: 12 images, 20 draws each."""
    generator = torch.Generator().manual_seed(2)
    picture = torch.arange(240) % 12
    by_draw, by_cluster = 0, 0
    for _ in range(1000):
        own = torch.randn(12, generator=generator, dtype=torch.float64)
        losses = own[picture] + torch.randn(240, generator=generator, dtype=torch.float64)
        values = by_picture(losses, picture)
        assert len(values) == 12
        assert float(values.mean()) == pytest.approx(float(losses.mean()), abs=1e-9)
        for_draws, for_pictures = Estimate.of(losses), Estimate.of(values)
        by_draw += for_draws.low < 0 < for_draws.high
        by_cluster += for_pictures.low < 0 < for_pictures.high
    assert by_cluster / 1000 == pytest.approx(0.95, abs=0.02)
    assert by_draw / 1000 < 0.6  # as if there were 240 pictures


def test_a_picture_more_often_drawn_than_others_is_no_fault():
    """A constant has no spread, for any weights and draws per image; and it is linear."""
    picture = torch.tensor([7, 7, 7, 2, 2, 9])
    weight = torch.tensor([0.1, 0.2, 0.0, 3.0, 0.4, 1.0])
    a, b = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(
        by_picture(torch.full((6,), 0.25), picture, weight), torch.full((3,), 0.25).double()
    )
    mean = float((weight * a).sum() / weight.sum())
    assert float(by_picture(a, picture, weight).mean()) == pytest.approx(mean)
    torch.testing.assert_close(
        by_picture(a - b, picture, weight),
        by_picture(a, picture, weight) - by_picture(b, picture, weight),
    )


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 10, 95, 4095])
def test_few_values_have_students_interval(dof):
    assert student_t(dof) == pytest.approx(stats.t.ppf(0.975, dof), rel=0.01)
    assert student_t(0) == math.inf


@pytest.mark.parametrize("dof", [1, 10, 30, 95, 4095])
@pytest.mark.parametrize("comparisons", [2, 8, 20])
def test_intervals_that_hold_together_are_wider(dof, comparisons):
    true = stats.t.ppf(1 - 0.025 / comparisons, dof)
    assert student_t(dof, comparisons) == pytest.approx(true, rel=0.01)


def test_a_pair_s_gain_is_found_where_its_losses_alone_hide_it():
    """A gain of a hundredth of the spread of losses is still significant."""
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parent = 5 + noise
    child = parent - 0.02 + 0.05 * noise.roll(1)
    gain = paired_gain(parent, child)
    assert 0 < gain.low < gain.mean < gain.high
    assert gain.mean == pytest.approx(float((parent - child).mean()))
    apart = [Estimate.of(x) for x in (parent, child)]
    assert apart[0].low < apart[1].mean < apart[0].high
    with pytest.raises(ValueError, match="same draws"):
        paired_gain(parent, child[1:])


def test_the_interval_of_an_estimate_covers_the_truth_as_often_as_it_says():
    for count in (3, 50):
        generator = torch.Generator().manual_seed(count)
        x = torch.randn(2000, count, generator=generator, dtype=torch.float64)
        covered = [e.low < 0 < e.high for e in map(Estimate.of, x)]
        assert sum(covered) / len(covered) == pytest.approx(0.95, abs=0.02)


def test_losses_by_noise_level_put_every_draw_into_its_share():
    sigma = NOISE.sigma(torch.linspace(0.001, 0.999, 400, dtype=torch.float64))
    found = by_noise_level(sigma, sigma.log(), NOISE, 8)
    edges = NOISE.sigma(torch.linspace(0, 1, 9)).tolist()
    assert list(found) == list(pairwise(edges))
    assert sum(e.count for e in found.values()) == 400
    for (low, high), estimate in found.items():
        inside = sigma[(sigma >= low) & (sigma < high)].log()
        assert estimate.mean == pytest.approx(float(inside.mean()))
    upper = by_noise_level(sigma[300:], sigma[300:], NOISE, 8)
    assert list(upper) == list(found)[6:]


def test_kernel_distance_is_the_unbiased_mmd_by_its_definition():
    x, y = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).split([4, 3])
    x, y = x[:3], y
    scale = y.double().square().mean().sqrt()
    k = lambda a, b: ((a.double() / scale) @ (b.double() / scale) / 3 + 1) ** 3  # noqa: E731
    total = 0.0
    for i in range(3):
        for j in range(3):
            if i != j:
                total += float(k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i]))
    assert float(kernel_distance(x, y).mean()) == pytest.approx(total / 6, rel=1e-9)


def test_kernel_distance_of_one_distribution_is_nothing_on_average_and_its_interval_covers_that():
    inside, means = 0, []
    for seed in range(200):
        g = torch.Generator().manual_seed(seed)
        x, y = torch.randn(64, 8, generator=g), torch.randn(64, 8, generator=g)
        estimate = Estimate.of(kernel_distance(x, y))
        means.append(estimate.mean)
        inside += estimate.low <= 0 <= estimate.high
    error = torch.tensor(means).std() / 200**0.5
    assert abs(torch.tensor(means).mean()) < 3 * error
    assert inside > 170  # of 190 expected


def test_kernel_distance_prefers_varied_pictures_to_collapsed_ones():
    """Unlike the Fréchet distance, which favours images of less spread in small samples."""
    g = torch.Generator().manual_seed(1)
    real, made = torch.randn(128, 64, generator=g), torch.randn(128, 64, generator=g)
    distances = [float(kernel_distance(spread * made, real).mean()) for spread in (1.0, 0.8, 0.6)]
    assert distances == sorted(distances)


def test_kernel_distance_needs_pictures_of_the_same_captions():
    with pytest.raises(ValueError, match="equally many pictures"):
        kernel_distance(torch.zeros(4, 2), torch.zeros(5, 2))
