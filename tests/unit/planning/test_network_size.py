"""Counted sizes equal measured ones."""

import random
from dataclasses import replace

import pytest

from ediffi_core.unet import PRESETS, SIZES, UNetConfig
from pipelines.planning.network_size import embeddings, size_of


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_counts_what_was_measured(name):
    found = size_of(PRESETS[name])
    assert found.parameters == SIZES[name].parameters
    assert float(f"{found.flops / 1e9:.4g}") == SIZES[name].gflops


def test_a_network_without_attention_grows_with_the_pixels():
    """Convolutions grow; conditioning and the keys of cross-attention do not."""
    config = replace(PRESETS["sr1024"], cross_attention=())
    once, more = size_of(config).flops, size_of(config, 1024).flops
    assert more == pytest.approx(16 * once, rel=1e-3)
    assert size_of(config).parameters == size_of(config, 1024).parameters


def measured(config, side):
    """Parameters and FLOPs of the real network, with sequences of 77 tokens."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ediffi_core.conditioning import Conditioning
    from ediffi_core.unet import UNet

    names = [s.name for s in config.embeddings if s.kind == "sequence"]
    with torch.device("meta"):
        net = UNet(config).eval()
        told = Conditioning(
            {s.name: torch.zeros(1, 77, s.dim) for s in config.embeddings if s.name in names},
            {name: torch.ones(1, 77, dtype=torch.bool) for name in names},
            {s.name: torch.zeros(1, s.dim) for s in config.embeddings if s.name not in names},
            low_res=torch.zeros(1, 3, side // 2, side // 2),
        )
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.zeros(1, 3, side, side), torch.zeros(1), told)
    return sum(p.numel() for p in net.parameters()), counter.get_total_flops()


@pytest.mark.parametrize("name", ["demo", "smoke-sr", "smoke"])
def test_the_network_itself_agrees_with_encoders_and_on_other_sides(name):
    config = replace(PRESETS[name], embeddings=embeddings(t5=64, clip_text=128, clip=48))
    side = 2 * config.resolution
    assert tuple(size_of(config, side)) == measured(config, side)


def written(seed):
    """A random network, as a user might write it."""
    draw = random.Random(seed)
    levels, layout = draw.randint(1, 4), draw.choice(["adm", "efficient"])
    sides = [32 >> (i + (layout == "efficient")) for i in range(levels)]
    return UNetConfig(
        resolution=32,
        channels=draw.choice([8, 12, 20, 48]),
        channel_mult=tuple(draw.randint(1, 4) for _ in range(levels)),
        blocks=draw.choice([1, 2, tuple(draw.randint(1, 3) for _ in range(levels))]),
        layout=layout,
        self_attention=tuple(draw.sample(sides, draw.randint(0, levels))),
        cross_attention=tuple(draw.sample(sides, draw.randint(0, levels))),
        head_channels=draw.choice([1, 4, 1000]),
        token_dim=draw.choice([3, 32]),
        norm=draw.choice(["group", "pixel"]),
        embeddings=embeddings(t5=64, clip_text=128, clip=48) if draw.random() < 0.7 else (),
        low_res=draw.random() < 0.5,
    )


@pytest.mark.parametrize("seed", range(24))
def test_any_configuration_is_counted_as_built(seed):
    config = written(seed)
    assert tuple(size_of(config)) == measured(config, config.resolution), config
