"""Degradations are a function of (seed, purpose, index); JPEG matches Pillow's."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ediffi_core.degrade import Degradation, blur, degrade, jpeg, shrink_and_enlarge

INDEX = torch.arange(100, 112)
HARD = Degradation(probability=1.0)


@pytest.fixture
def x():
    """Smooth pictures with edges, [12, 3, 24, 20] in [-1, 1]."""
    return torch.stack([picture(24, 20, seed) for seed in range(12)])


def picture(height, width, seed=0):
    """Smooth images with muted colours, like photographs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 4, height // 4 + 2, width // 4 + 2, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0]
    return (0.5 * smooth[:1] + 0.15 * smooth[1:]).clamp(-1, 1)


def spoil(x, index=INDEX, settings=HARD, seed=0, purpose="degrade"):
    return degrade(x, index, settings, seed=seed, purpose=purpose)


@pytest.mark.parametrize("settings", [HARD, Degradation(), Degradation(blur_sigma=2.5, shrink=4)])
def test_a_picture_does_not_depend_on_its_batch(settings, x):
    together = spoil(x, settings=settings)
    assert torch.equal(together, spoil(x, settings=settings))
    alone = torch.cat([spoil(x[[i]], INDEX[[i]], settings) for i in range(12)])
    # One grey level in a few pixels, where rounding to JPEG's coefficients falls the other way.
    assert ((together - alone).abs() > 1e-5).float().mean() < 1e-3
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled = spoil(x[order], INDEX[order], settings)
    assert ((shuffled - together[order]).abs() > 1e-5).float().mean() < 1e-3


@pytest.mark.parametrize("settings", [HARD, Degradation(probability=1.0, blur_sigma=0)])
def test_the_memory_layout_changes_nothing(settings, x):
    """With `workers.channels_last`, or as a slice of a larger image."""
    plain = spoil(x, settings=settings)
    wide = torch.nn.functional.pad(x, (3, 3, 3, 3))[:, :, 3:-3, 3:-3]
    for other in (x.to(memory_format=torch.channels_last), wide):
        assert not other.is_contiguous()
        found = spoil(other, settings=settings)
        assert ((found - plain).abs() > 1e-5).float().mean() < 1e-3  # JPEG's rounding, as above


def test_another_seed_purpose_or_index_is_another_draw(x):
    base = spoil(x)
    for other in (spoil(x, seed=1), spoil(x, purpose="val"), spoil(x, index=INDEX + 12)):
        assert (other - base).abs().flatten(1).amax(dim=1).min() > 0.01


def test_strength_zero_is_the_identity(x):
    assert torch.equal(spoil(x, settings=HARD.scaled(0)), x)
    assert torch.equal(spoil(x, settings=Degradation(probability=0)), x)


def test_strength_one_changes_nothing_and_less_spoils_less(x):
    assert HARD.scaled(1) == HARD
    errors = [
        float((spoil(x, settings=HARD.scaled(s)) - x).abs().mean()) for s in (0.1, 0.3, 1.0, 1.5)
    ]
    assert errors == sorted(errors)
    assert errors[0] < errors[-1] / 2


def test_the_range_is_kept(x):
    loud = Degradation(probability=1, gaussian_noise=2, poisson_noise=2, jpeg_quality=1)
    for signal in (x, torch.ones_like(x), -torch.ones_like(x), x.sign()):
        out = spoil(signal, settings=loud)
        assert out.dtype == x.dtype
        assert out.min() >= -1
        assert out.max() <= 1


OFF = {
    "blur_sigma": 0.0,
    "shrink": 1.0,
    "gaussian_noise": 0.0,
    "poisson_noise": 0.0,
    "jpeg_quality": 95,
}


@pytest.mark.parametrize("only", OFF)
def test_each_corruption_works_alone_with_its_probability(only):
    """Includes JPEG of the highest quality, for comparison."""
    n = 400
    x = picture(8, 8).expand(n, -1, -1, -1)
    clean = Degradation(**OFF, probability=0.25)
    strong = {
        "blur_sigma": 2.0,
        "shrink": 4.0,
        "gaussian_noise": 1.0,
        "poisson_noise": 1.0,
        "jpeg_quality": 1,
    }
    settings = Degradation(**{**OFF, only: strong[only]}, probability=0.25)
    index = torch.arange(n)
    found, mild = (degrade(x, index, s, seed=0, purpose="one") for s in (settings, clean))
    changed = (found - mild).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert 0.17 < changed.float().mean() <= 0.32


def test_blur_is_the_gaussian_s_convolution():
    x = torch.zeros(2, 1, 15, 15)
    x[:, :, 7, 7] = 1
    sigma = torch.tensor([0.8, 1.5])
    found = blur(x, sigma, 7)
    at = torch.arange(-7.0, 8)
    for row, s in zip(found, sigma, strict=True):
        line = torch.exp(-0.5 * (at / s) ** 2)
        line /= line.sum()
        torch.testing.assert_close(row[0], torch.outer(line, line), rtol=1e-4, atol=1e-7)


def test_blurring_or_shrinking_by_nothing_is_the_identity(x):
    for radius in (0, 3):
        assert torch.equal(blur(x, torch.zeros(12), radius), x)
    assert torch.equal(shrink_and_enlarge(x, [1.0] * 12), x)
    flat = torch.full((1, 3, 9, 7), 0.3)
    torch.testing.assert_close(shrink_and_enlarge(flat, [2.7]), flat)


def test_poisson_noise_grows_with_the_root_of_brightness():
    """On grey images, where the best JPEG is accurate to half a grey level."""
    settings = Degradation(**{**OFF, "poisson_noise": 0.4}, probability=1.0)
    tones = torch.tensor([-1.0, -0.5, 0.0])
    x = tones.repeat_interleave(400)[:, None, None, None].expand(-1, 3, 8, 8)
    noise = degrade(x, torch.arange(1200), settings, seed=0, purpose="p").mean(dim=1) - x[:, 0]
    dark, low, middle = noise.view(3, -1).std(dim=1)
    assert dark < 1e-6
    assert middle / low == pytest.approx(2**0.5, rel=0.1)


def pillow(pixels, quality):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB")).astype(float)


@pytest.mark.parametrize("quality", [5, 30, 49, 50, 75, 95])
@pytest.mark.parametrize("size", [(64, 64), (16, 16), (48, 80), (37, 53), (9, 30)])
def test_jpeg_is_pillow_s(size, quality):
    """Within 1.5 grey levels on average, where JPEG itself is 3 to 18 levels off."""
    x = picture(*size)[None]
    pixels = ((x + 1) * 127.5).round()
    expected = pillow(pixels[0].permute(1, 2, 0).byte().numpy(), quality)
    found = (jpeg(pixels / 127.5 - 1, torch.tensor([float(quality)])) + 1) * 127.5
    found = found[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, found.round(), atol=1e-3)
    spoilt = np.abs(expected - pixels[0].permute(1, 2, 0).numpy()).mean()
    assert np.abs(found - expected).mean() < min(1.5, 0.4 * spoilt)


def test_jpeg_takes_each_picture_s_own_quality(x):
    qualities = torch.linspace(5, 95, 12)
    together = jpeg(x, qualities)
    for i in range(12):
        torch.testing.assert_close(together[[i]], jpeg(x[[i]], qualities[[i]]), rtol=0, atol=0.02)
    errors = [float((together[i] - x[i]).abs().mean()) for i in (0, 11)]
    assert errors[0] > 2 * errors[1]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"probability": 1.1}, r"probability must lie in \[0, 1\], got 1.1"),
        ({"shrink": 0.5}, "shrink >= 1"),
        ({"jpeg_quality": 0}, "jpeg_quality from 1 to 95"),
        ({"blur_sigma": -1}, "must not be negative"),
        ({"gaussian_noise": -0.1}, "must not be negative"),
    ],
)
def test_impossible_settings_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        Degradation(**arguments)
