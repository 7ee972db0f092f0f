"""A small network whose every branch is open, and conditioning to feed it."""

import pytest
import torch

from ediffi_core.conditioning import Conditioning, EmbeddingSpec
from ediffi_core.unet import UNet, UNetConfig

torch.set_num_threads(1)

SPECS = (
    EmbeddingSpec(name="clip_text", dim=6, kind="sequence"),
    EmbeddingSpec(name="t5", dim=8, kind="sequence"),
    EmbeddingSpec(name="clip_text_pooled", dim=6, kind="pooled", source="clip_text"),
    EmbeddingSpec(name="clip_image", dim=6, kind="pooled", attended=True),
)


@pytest.fixture
def config():
    return UNetConfig(
        resolution=8,
        channels=8,
        channel_mult=(1, 2),
        blocks=1,
        attention=(4,),
        head_channels=8,
        token_dim=12,
        embeddings=SPECS,
    )


@pytest.fixture
def make_net(config):
    """``make_net(seed)`` → a network with random weights everywhere, none of them zero."""

    def make(seed=0, config=config):
        net = UNet(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(0.2 * torch.randn(p.shape, generator=generator))
        return net.eval().requires_grad_(False)

    return make


@pytest.fixture
def make_cond():
    """``make_cond(rows)`` → every embedding present, sequences of unequal length."""

    def make(rows=3, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape):
            return torch.randn(*shape, generator=generator)

        lengths = {"clip_text": 1 + torch.arange(rows) % 4, "t5": 5 - torch.arange(rows) % 3}
        masks = {k: torch.arange(5) < n[:, None] for k, n in lengths.items()}
        sequences = {
            "clip_text": randn(rows, 5, 6) * masks["clip_text"][..., None],
            "t5": randn(rows, 5, 8) * masks["t5"][..., None],
        }
        pooled = {"clip_text_pooled": randn(rows, 6), "clip_image": randn(rows, 6)}
        return Conditioning(sequences, masks, pooled)

    return make
