"""Measured parameters and FLOPs of the presets; Configs A to D match the published totals."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ediffi_core.conditioning import Conditioning
from ediffi_core.unet import PRESETS, SIZES, UNet

TOKENS = 77


def count(module):
    return sum(p.numel() for p in module.parameters())


def told(config):
    """Conditioning of one image, with sequences of 77 tokens."""
    sequences = {
        s.name: torch.zeros(1, TOKENS, s.dim) for s in config.embeddings if "seq" in s.kind
    }
    pooled = {s.name: torch.zeros(1, s.dim) for s in config.embeddings if s.kind == "pooled"}
    masks = {k: torch.ones(1, TOKENS, dtype=torch.bool) for k in sequences}
    small = torch.zeros(1, 3, config.resolution // 4, config.resolution // 4)
    return Conditioning(sequences, masks, pooled, low_res=small if config.low_res else None)


def test_every_preset_has_its_size():
    assert set(SIZES) == set(PRESETS)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_sizes_are_as_measured(name):
    config = PRESETS[name]
    with torch.device("meta"):
        net, x = UNet(config).eval(), torch.zeros(1, 3, config.resolution, config.resolution)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(x, torch.zeros(1), told(config))
    assert count(net) == SIZES[name].parameters
    assert float(f"{counter.get_total_flops() / 1e9:.4g}") == SIZES[name].gflops


@pytest.fixture(scope="module")
def encoders():
    """Parameters of T5 v1.1 XXL's encoder and CLIP ViT-L/14, from their libraries."""
    import open_clip
    from transformers import T5Config, T5EncoderModel

    t5 = T5Config(
        vocab_size=32128,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    with torch.device("meta"):
        return {
            "t5": count(T5EncoderModel(t5)),
            "clip": count(open_clip.CLIP(**open_clip.get_model_config("ViT-L-14"))),
        }


def test_the_encoders_have_the_known_sizes(encoders):
    assert encoders["t5"] == pytest.approx(4.762e9, rel=1e-3)
    assert encoders["clip"] == pytest.approx(0.4276e9, rel=1e-3)


@pytest.mark.parametrize(
    ("bases", "sr256s", "published"),
    [(1, 1, 6.8e9), (1, 2, 7.1e9), (2, 2, 8.1e9), (3, 2, 9.1e9)],
    ids="ABCD",
)
def test_configurations_add_up_to_the_published_totals(bases, sr256s, published, encoders):
    experts = (
        bases * SIZES["base64"].parameters
        + sr256s * SIZES["sr256"].parameters
        + SIZES["sr1024"].parameters
    )
    assert experts + sum(encoders.values()) == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize(
    ("name", "about"), [("base64", 1.0e9), ("sr256", 0.3e9), ("sr1024", 0.3e9)]
)
def test_one_expert_has_the_paper_s_size(name, about):
    assert SIZES[name].parameters == pytest.approx(about, rel=0.15)
