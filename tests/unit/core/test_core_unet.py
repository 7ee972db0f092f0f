"""Networks start at zero, every weight learns, configurations survive JSON."""

import dataclasses
import json
from collections import Counter
from itertools import product

import pytest
import torch

from ediffi_core import draws
from ediffi_core.conditioning import Conditioning
from ediffi_core.precond import Denoiser, coefficients, denoising_loss
from ediffi_core.unet import PRESETS, FieldError, UNet, UNetConfig


@pytest.fixture
def batch(make_cond):
    """Noisy 16×16 images, their c_noise, and conditioning with 4×4 low-resolution images."""
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([-1.0, 0, 1]), make_cond(low_res=4)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_fresh_network_answers_zero_and_its_denoiser_c_skip_x(config, make_cond):
    torch.manual_seed(0)
    net = UNet(config)
    x = torch.randn(3, 3, 8, 8)
    assert not net(x, torch.tensor([-1.0, 0, 1]), make_cond()).any()
    sigma = torch.tensor([0.01, 0.5, 80], dtype=torch.float64)
    c_skip = coefficients(sigma, 0.5).c_skip.float()[:, None, None, None]
    assert torch.equal(Denoiser(net)(x, sigma, make_cond()), c_skip * x)


def test_every_parameter_learns(config, make_cond):
    """Zeroed branches get gradients in turn: first the output, then the blocks, then the rest.

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
    """Resolution only decides where attention is, so a network of crops runs on whole images."""
    net, cond = make_net(), make_cond()
    for side in (4, 16, 20):
        assert net(torch.randn(3, 3, side, side), torch.zeros(3), cond).shape[-1] == side


def test_configuration_survives_json(either):
    config = either
    again = UNetConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)
    first, second = UNet(config).state_dict(), UNet(again).state_dict()
    assert {k: v.shape for k, v in first.items()} == {k: v.shape for k, v in second.items()}


@pytest.mark.parametrize("name", ["demo", "demo-sr", "smoke"])
def test_presets_build_and_run(name, config, make_cond):
    net = UNet(dataclasses.replace(PRESETS[name], embeddings=config.embeddings))
    side = PRESETS[name].resolution
    cond = make_cond(2, low_res=side // 2 if net.config.low_res else None)
    out = net(torch.randn(2, 3, side, side), torch.zeros(2), cond)
    assert out.shape == (2, 3, side, side)


@pytest.mark.parametrize("sides", [(4, 4), (12, 20), (32, 8)])
def test_an_efficient_network_runs_on_other_sizes(sides, efficient, make_net, make_cond):
    out = make_net(config=efficient)(torch.randn(2, 3, *sides), torch.zeros(2), make_cond(2, 0, 4))
    assert out.shape == (2, 3, *sides)
    assert out.isfinite().all()


def test_sides_that_do_not_halve_are_refused(either, make_net, make_cond):
    net, factor = make_net(config=either), either.factor
    with pytest.raises(ValueError, match=rf"multiples of {factor}, got {factor}×{factor + 1}"):
        net(torch.zeros(1, 3, factor, factor + 1), torch.zeros(1), make_cond(1, low_res=4))


def test_an_efficient_network_adds_its_stem_at_full_resolution(efficient, make_net, batch):
    """Without output from the levels, the result depends on the stem only."""
    net, (x, c_noise, cond) = make_net(config=efficient), batch
    for p in net.stages[-1].parameters():
        p.zero_()
    stem = net.stem(net.with_low_res(x, cond))
    expected = net.out(torch.nn.functional.silu(net.norm_out(stem)))
    assert torch.equal(net(x, c_noise, cond), expected)


def test_the_small_picture_is_read_enlarged(efficient, make_net, batch):
    """An image and its bilinear upsampling are the same input; other images differ."""
    net, (x, c_noise, cond) = make_net(config=efficient), batch
    out = net(x, c_noise, cond)
    large = torch.nn.functional.interpolate(cond.low_res, size=(16, 16), mode="bilinear")
    close(net(x, c_noise, dataclasses.replace(cond, low_res=large)), out)
    other = dataclasses.replace(cond, low_res=-cond.low_res)
    assert (net(x, c_noise, other) - out).abs().max() > 1e-3
    with pytest.raises(ValueError, match="needs a low-resolution image: set low_res"):
        net(x, c_noise, dataclasses.replace(cond, low_res=None))


def test_a_base_network_reads_no_small_picture(make_net, batch):
    x, c_noise, cond = batch
    bare = dataclasses.replace(cond, low_res=None)
    assert torch.equal(make_net()(x, c_noise, cond), make_net()(x, c_noise, bare))


def test_a_pixel_norm_network_sees_a_finite_surrounding(efficient, make_net, make_cond):
    """With pixel norm, changing a pixel has only local effects; with group norm, global ones."""

    def moved(config):
        net, cond = make_net(config=config), make_cond(1, low_res=32)
        x = torch.zeros(1, 3, 128, 128)
        before = net(x, torch.zeros(1), cond)
        x[..., 0, 0] = 1
        return (net(x, torch.zeros(1), cond) - before).abs().amax(dim=(0, 1))

    away = moved(efficient)
    assert away[:16, :16].max() > 1e-3
    assert not away[64:].any()
    assert not away[:, 64:].any()
    assert moved(dataclasses.replace(efficient, norm="group"))[64:].any()


@pytest.mark.slow
def test_the_forward_pass_has_no_graph_break(either, make_net, batch):
    """Compiles without graph breaks: fullgraph raises at the first one."""
    net = make_net(config=either)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    close(compiled(*batch), net(*batch))


def gradients(net, batch):
    net.zero_grad()
    net(*batch).square().mean().backward()
    return {k: p.grad.clone() for k, p in net.named_parameters()}


@pytest.mark.slow
def test_activation_checkpointing_gives_the_same_gradients(either, make_net, batch):
    net, ran = make_net(config=either).train().requires_grad_(True), Counter()
    for stage in net.stages:
        stage.register_forward_pre_hook(lambda m, args: ran.update([m.level]))
    expected = gradients(net, batch)
    once = dict(ran)
    for levels in ({0}, {1}, {0, 1}):
        ran.clear()
        net.checkpointed = frozenset(levels)
        found = gradients(net, batch)
        assert all(torch.equal(found[k], v) for k, v in expected.items())
        assert ran == {level: once[level] * (1 + (level in levels)) for level in once}


def test_bfloat16_inside_float32_outside(either, make_net, batch):
    """Autocast changes the result by rounding only, not its dtype."""
    x, _, cond = batch
    denoiser = Denoiser(make_net(config=either))
    sigma = torch.tensor(0.7, dtype=torch.float64)
    exact, inside = denoiser(x, sigma, cond), []
    denoiser.net.register_forward_hook(lambda m, args, out: inside.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = denoiser(x, sigma, cond)
    assert inside == [torch.bfloat16]
    assert found.dtype == torch.float32
    assert 0 < (found - exact).abs().max() < 0.05 * exact.abs().max()


def test_channels_last_gives_the_same(either, make_net, batch):
    x, c_noise, cond = batch
    net = make_net(config=either)
    expected = net(x, c_noise, cond)
    net = net.to(memory_format=torch.channels_last)
    close(net(x.to(memory_format=torch.channels_last), c_noise, cond), expected)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"blocks": (1, 2, 3)}, r"blocks \(1, 2, 3\) must be one number, or one for each of 2"),
        ({"layout": "efficient", "resolution": 10}, "resolution that 4 divides, got 10"),
        ({"resolution": 9}, "2 levels needs a resolution that 2 divides, got 9"),
        ({"channel_mult": (1, 2, 2, 2, 2)}, "5 levels needs a resolution that 16 divides"),
        (
            {"self_attention": (4, 3)},
            r"attention at \[3\] has no effect: the levels' sides are \[8, 4\]",
        ),
        ({"cross_attention": (16,)}, "has no effect"),
        ({"channel_mult": ()}, r"a number from 1 for each level, such as \(1, 2, 4\), got \(\)"),
        ({"channel_mult": (1, 0)}, r"a number from 1 for each level"),
        ({"blocks": 0}, "blocks must be at least 1 on every level, got 0"),
        ({"blocks": (2, 0)}, "blocks must be at least 1 on every level"),
        ({"token_dim": 0}, "token_dim must be at least 1, got 0"),
        ({"channels": 9}, "channels must be even.* got 9; write 10"),
        ({"channels": 18}, "a layer of 18, which group norm cannot split evenly; write 20, or"),
        ({"channels": 20, "head_channels": 6}, "6 heads at side 4.* its 40 channels; write 5"),
        ({"layout": "vit"}, "layout is one of adm, efficient, got 'vit'"),
        ({"norm": "layer"}, "norm is one of group, pixel, got 'layer'"),
    ],
)
def test_impossible_networks_are_refused(change, text, config):
    """The error names the field to change."""
    with pytest.raises(FieldError, match=text) as found:
        dataclasses.replace(config, **change)
    assert found.value.field in ("resolution", *change)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["adm", "efficient"])
@pytest.mark.parametrize("norm", ["group", "pixel"])
def test_a_network_is_refused_if_it_would_fail_and_only_then(layout, norm, monkeypatch):
    """For many widths and heads: a configuration is accepted if and only if it runs."""

    def runs(config):
        cond = Conditioning(low_res=torch.zeros(2, 3, 4, 4, device="meta"))
        with torch.device("meta"):
            try:
                out = UNet(config)(torch.zeros(2, 3, 8, 8), torch.zeros(2), cond)
            except (RuntimeError, ValueError):
                return False
        return out.shape == (2, 3, 8, 8)

    outcomes = set()
    widths = (1, 2, 3, 6, 8, 12, 30, 32, 35)
    for channels, mult, heads in product(widths, [(1, 1), (1, 3), (3, 2)], [1, 6, 64]):
        how = {"channels": channels, "channel_mult": mult, "head_channels": heads}
        how |= {"layout": layout, "norm": norm, "blocks": 1, "self_attention": (4,)}
        try:
            config, accepted = UNetConfig(resolution=8, low_res=True, **how), True
        except FieldError:
            with monkeypatch.context() as unchecked:
                unchecked.setattr(UNetConfig, "__post_init__", lambda self: None)
                config, accepted = UNetConfig(resolution=8, low_res=True, **how), False
        assert runs(config) == accepted, how
        outcomes.add(accepted)
    assert outcomes == {True, False}
