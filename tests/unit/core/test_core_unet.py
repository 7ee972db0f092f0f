"""A network starts at zero, every weight of it learns, its configuration survives JSON."""

import dataclasses
import json

import pytest
import torch

from ediffi_core import draws
from ediffi_core.conditioning import Conditioning
from ediffi_core.precond import Denoiser, coefficients, denoising_loss
from ediffi_core.unet import PRESETS, UNet, UNetConfig


def test_a_fresh_network_answers_zero_and_its_denoiser_c_skip_x(config, make_cond):
    torch.manual_seed(0)
    net = UNet(config)
    x = torch.randn(3, 3, 8, 8)
    assert not net(x, torch.tensor([-1.0, 0, 1]), make_cond()).any()
    sigma = torch.tensor([0.01, 0.5, 80], dtype=torch.float64)
    c_skip = coefficients(sigma, 0.5).c_skip.float()[:, None, None, None]
    assert torch.equal(Denoiser(net)(x, sigma, make_cond()), c_skip * x)


def test_every_parameter_learns(config, make_cond):
    """Zeroed branches open one after the other: the output, then the blocks, then what feeds them.

    So at the third step there is a gradient everywhere, and none of it is exactly zero.
    """
    torch.manual_seed(0)
    denoiser = Denoiser(UNet(config))
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-3)
    cond, x = make_cond(6), torch.randn(6, 3, 8, 8)
    sigma = torch.logspace(-2, 1, 6, dtype=torch.float64)
    with_gradient = []
    for step in range(3):
        eps = draws.normal(0, "eps", torch.arange(6) + 6 * step, (3, 8, 8))
        optimizer.zero_grad()
        denoising_loss(denoiser, 0.5, x, sigma, eps, cond).mean().backward()
        grads = {k: p.grad for k, p in denoiser.named_parameters()}
        with_gradient.append({k for k, g in grads.items() if g is not None and g.any()})
        assert all(g is None or g.isfinite().all() for g in grads.values())
        optimizer.step()
    assert with_gradient[0] == {"net.out.weight", "net.out.bias"}
    assert with_gradient[0] < with_gradient[1] < with_gradient[2]
    assert set(grads) - with_gradient[2] == set()


def test_the_noise_level_is_read(make_net, make_cond):
    net, x = make_net(), torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    a, b = (net(x, torch.full((3,), c), make_cond()) for c in (-0.5, -0.45))
    assert (a - b).abs().max() > 1e-3


def test_a_network_without_embeddings_is_unconditional(config):
    torch.manual_seed(0)
    net = UNet(dataclasses.replace(config, embeddings=()))
    assert net(torch.randn(2, 3, 8, 8), torch.zeros(2), Conditioning()).shape == (2, 3, 8, 8)


def test_other_sizes_run(make_net, make_cond):
    """Only where attention stands depends on the resolution: a crop's network runs on the whole."""
    net, cond = make_net(), make_cond()
    for side in (4, 16, 20):
        assert net(torch.randn(3, 3, side, side), torch.zeros(3), cond).shape[-1] == side


def test_configuration_survives_json(config):
    again = UNetConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)
    first, second = UNet(config).state_dict(), UNet(again).state_dict()
    assert {k: v.shape for k, v in first.items()} == {k: v.shape for k, v in second.items()}


@pytest.mark.parametrize("name", ["demo", "smoke"])
def test_presets_build_and_run(name, config, make_cond):
    net = UNet(dataclasses.replace(PRESETS[name], embeddings=config.embeddings))
    side = PRESETS[name].resolution
    out = net(torch.randn(2, 3, side, side), torch.zeros(2), make_cond(2))
    assert out.shape == (2, 3, side, side)


def test_the_base_preset_has_the_paper_s_order_of_size(config):
    with torch.device("meta"):
        net = UNet(dataclasses.replace(PRESETS["base64"], embeddings=config.embeddings))
    assert 0.5e9 < sum(p.numel() for p in net.parameters()) < 1.2e9


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"resolution": 9}, "2 levels needs a resolution that 2 divides, got 9"),
        ({"channel_mult": (1, 2, 2, 2, 2)}, "5 levels needs a resolution that 16 divides"),
        (
            {"attention": (4, 3)},
            r"attention at \[3\] has no effect: the levels' sides are \[8, 4\]",
        ),
        ({"attention": (16,)}, "has no effect"),
    ],
)
def test_impossible_networks_are_refused(change, text, config):
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(config, **change)
