"""Attention shares equal the softmax, add up to 1, and leave no hooks behind."""

import dataclasses

import pytest
import torch

from ediffi_core.analysis import attention_shares
from ediffi_core.conditioning import Paint
from ediffi_core.guidance import guided
from ediffi_core.noise import edm_grid
from ediffi_core.precond import Denoiser
from ediffi_core.sampling import SOLVERS
from ediffi_core.unet.attention import CrossAttention

NAMES = ["null", "clip_text", "t5", "clip_image"]


@pytest.fixture
def x():
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def layers(net):
    return [k for k, m in net.named_modules() if isinstance(m, CrossAttention)]


def test_shares_add_up_for_every_layer_and_sigma(x, make_net, make_cond):
    net, grid = make_net(), edm_grid(4)
    with attention_shares(net) as shares:
        SOLVERS["euler"](guided(Denoiser(net), make_cond(), 0), x, grid)
    assert [s.layer for s in shares] == layers(net) * 4
    sigmas = [s.sigma for s in shares]
    assert sigmas == pytest.approx(grid[:-1].repeat_interleave(len(layers(net))).tolist(), rel=1e-4)
    for share in shares:
        assert share.side == 4
        assert list(share.shares) == NAMES
        assert sum(share.shares.values()) == pytest.approx(1, abs=1e-5)
        assert all(0 < v < 1 for v in share.shares.values())
    assert len({round(s.shares["null"], 4) for s in shares}) > 4


@pytest.mark.parametrize("paint", [False, True])
def test_shares_are_those_of_the_softmax(paint, x, make_net, make_cond):
    """One-hot values per token, so that the output of attention is the share."""
    net, cond = make_net(), make_cond()
    if paint:
        generator = torch.Generator().manual_seed(1)
        maps = {k: torch.rand(3, 5, 4, 4, generator=generator) for k in ("t5", "clip_text")}
        cond = dataclasses.replace(cond, paint=Paint(maps))
    seen = {}
    layer = dict(net.named_modules())[layers(net)[0]]

    def values(tokens):
        k, v = CrossAttention.keys_values(layer, tokens)
        group = torch.tensor([0] + [1] * 5 + [2] * 5 + [3])  # v's channels [N, heads, T, 8]
        return k, torch.eye(8)[group].expand_as(v)

    layer.keys_values = values
    layer.out.register_forward_pre_hook(lambda m, args: seen.update(attended=args[0]))
    with attention_shares(net) as shares:
        Denoiser(net)(x, torch.tensor(2.0, dtype=torch.float64), cond)
    expected = seen["attended"].unflatten(2, (-1, 8)).mean(dim=(0, 1, 2))[:4]
    assert list(shares[0].shares.values()) == pytest.approx(expected.tolist(), abs=1e-5)


def test_absent_embeddings_and_padding_get_nothing(x, make_net, make_cond, config):
    net = make_net()
    cond = make_cond().keep({"t5": torch.zeros(3, dtype=torch.bool)}, config.embeddings)
    with attention_shares(net) as shares:
        net(x, torch.zeros(3), cond)
    assert all(s.shares["t5"] == 0 for s in shares)
    assert all(s.shares["clip_text"] > 0 for s in shares)


def test_guidance_s_unconditional_half_is_left_out(x, make_net, make_cond):
    net, cond = make_net(), make_cond()
    sigma = torch.tensor(1.0, dtype=torch.float64)
    with attention_shares(net) as alone:
        Denoiser(net)(x, sigma, cond)
    with attention_shares(net) as both:
        guided(Denoiser(net), cond, 3.0)(x, sigma)
    with attention_shares(net) as none:
        Denoiser(net)(x, sigma, cond.null())
    assert none == []
    for a, b in zip(alone, both, strict=True):
        assert list(a.shares.values()) == pytest.approx(list(b.shares.values()), abs=1e-5)


def hooks(net):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in net.modules())


def test_watching_changes_nothing_and_leaves_nothing(x, make_net, make_cond):
    net, cond = make_net(), make_cond()
    expected = net(x, torch.zeros(3), cond)
    with attention_shares(net):
        assert hooks(net) == 1 + len(layers(net))
        assert torch.equal(net(x, torch.zeros(3), cond), expected)
    assert hooks(net) == 0
    with pytest.raises(RuntimeError, match="stop"), attention_shares(net):
        raise RuntimeError("stop")
    assert hooks(net) == 0
    assert torch.is_grad_enabled()
