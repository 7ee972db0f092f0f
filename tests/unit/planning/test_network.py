"""The counted sizes are the measured ones."""

from dataclasses import replace

import pytest

from ediffi_core.unet import PRESETS, SIZES
from pipelines.planning.network import embeddings, size_of


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_counts_what_was_measured(name):
    found = size_of(PRESETS[name])
    assert found.parameters == SIZES[name].parameters
    assert float(f"{found.flops / 1e9:.4g}") == SIZES[name].gflops


def test_a_network_without_attention_grows_with_the_pixels():
    """Convolutions do; what is told once, and cross-attention's keys, stay."""
    config = replace(PRESETS["sr1024"], cross_attention=())
    once, more = size_of(config).flops, size_of(config, 1024).flops
    assert more == pytest.approx(16 * once, rel=1e-3)
    assert size_of(config).parameters == size_of(config, 1024).parameters


@pytest.mark.parametrize("name", ["demo", "smoke-sr", "smoke"])
def test_the_network_itself_agrees_with_encoders_and_on_other_sides(name):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ediffi_core.conditioning import Conditioning
    from ediffi_core.unet import UNet

    config = replace(PRESETS[name], embeddings=embeddings(t5=64, clip_text=128, clip=48))
    side = 2 * config.resolution
    net = UNet(config).eval()
    told = Conditioning(
        {s.name: torch.zeros(1, 77, s.dim) for s in config.embeddings if s.kind == "sequence"},
        {n: torch.ones(1, 77, dtype=torch.bool) for n in ("t5", "clip_text")},
        {s.name: torch.zeros(1, s.dim) for s in config.embeddings if s.kind == "pooled"},
        low_res=torch.zeros(1, 3, side // 2, side // 2),
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 3, side, side), torch.zeros(1), told)
    found = size_of(config, side)
    assert found.parameters == sum(p.numel() for p in net.parameters())
    assert found.flops == counter.get_total_flops()
