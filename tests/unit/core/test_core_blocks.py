"""Blocks: fused upsampling, a norm without spatial mixing, distinct noise embeddings."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ediffi_core.unet.blocks import NoiseEmbedding, PixelNorm, ResBlock, UpConv


@pytest.mark.parametrize("side", [(1, 1), (1, 4), (5, 7), (8, 8)])
def test_up_conv_is_enlarging_then_convolving(side):
    torch.manual_seed(0)
    layer = UpConv(3, 5).double()
    x = torch.randn(2, 3, *side, dtype=torch.float64, requires_grad=True)
    found = layer(x)
    enlarged = F.interpolate(x, scale_factor=2, mode="nearest")
    expected = F.conv2d(enlarged, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    pull = torch.randn_like(expected)
    leaves = (x, layer.weight, layer.bias)
    for a, b in zip(
        torch.autograd.grad(found, leaves, pull),
        torch.autograd.grad(expected, leaves, pull),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_up_conv_costs_16_products_for_36():
    def flops(layer, x):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(x)
        return counter.get_total_flops()

    with torch.device("meta"):
        mine = flops(UpConv(4, 4), torch.zeros(1, 4, 8, 8))
        plain = flops(torch.nn.Conv2d(4, 4, 3, padding=1), torch.zeros(1, 4, 16, 16))
    assert mine / plain == 16 / 36


def test_pixel_norm_brings_each_pixel_to_unit_size_and_scales_it():
    norm = PixelNorm(6)
    x = torch.randn(2, 6, 3, 4) * torch.logspace(-2, 3, 12).view(1, 1, 3, 4)
    torch.testing.assert_close(norm(x).square().mean(dim=1), torch.ones(2, 3, 4), rtol=2e-2, atol=0)
    alone = norm(x[:, :, 1:2, 2:3])
    torch.testing.assert_close(norm(x)[:, :, 1:2, 2:3], alone)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(6.0))
    torch.testing.assert_close(norm(x), PixelNorm(6)(x) * torch.arange(6.0)[:, None, None])


def test_pixel_norm_of_nothing_is_nothing():
    assert not PixelNorm(4)(torch.zeros(1, 4, 2, 2)).any()


@pytest.mark.parametrize("norm", ["group", "pixel"])
@pytest.mark.parametrize(("resample", "side"), [("none", 8), ("down", 4), ("up", 16)])
def test_a_fresh_block_only_resamples(resample, side, norm):
    torch.manual_seed(0)
    block = ResBlock(8, 8, 12, resample, norm)
    x = torch.randn(2, 8, 8, 8)
    expected = {
        "none": x,
        "down": F.avg_pool2d(x, 2),
        "up": x.repeat_interleave(2, 2).repeat_interleave(2, 3),
    }[resample]
    assert expected.shape[2] == side
    assert torch.equal(block(x, torch.randn(2, 12)), expected)


def test_neighbouring_levels_of_a_sampler_are_told_apart():
    """The embeddings of 25 steps of EDM's grid all differ."""
    from ediffi_core.noise import edm_grid

    c_noise = torch.log(edm_grid(25)[:-1]).float() / 4
    embedding = NoiseEmbedding(32, 32)
    embedding.mlp = torch.nn.Identity()
    away = torch.cdist(embedding(c_noise), embedding(c_noise))
    away.fill_diagonal_(torch.inf)
    assert away.min() > 0.1
