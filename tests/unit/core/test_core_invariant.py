"""Networks of the demo's shapes: float results of a row do not depend on its batch."""

from dataclasses import replace

import pytest
import torch

from ediffi_core.cascade import CascadeStage, sample
from ediffi_core.conditioning import Conditioning, EmbeddingSpec, Paint
from ediffi_core.control import Control
from ediffi_core.invariant import RowInvariant, padded
from ediffi_core.precond import Denoiser
from ediffi_core.unet import UNet, UNetConfig

pytestmark = pytest.mark.slow

WIDTH, LENGTHS = 32, [1, 7, 16, 23, 40, 2, 17, 5]
SPECS = (
    EmbeddingSpec(name="clip_text", dim=WIDTH, kind="sequence"),
    EmbeddingSpec(name="t5", dim=WIDTH, kind="sequence"),
    EmbeddingSpec(name="clip_text_pooled", dim=WIDTH, kind="pooled", source="clip_text"),
    EmbeddingSpec(name="clip_image", dim=WIDTH, kind="pooled", attended=True),
)
SR = {"layout": "efficient", "norm": "pixel", "residual": True, "low_res": True}
NETWORKS = {
    16: {"channel_mult": (2, 4, 8), "self_attention": (8, 4), "cross_attention": (16, 8, 4)},
    32: {"channel_mult": (1, 2, 4), "cross_attention": (16, 8, 4), **SR},
    64: {"channel_mult": (1, 2), **SR},
}


def denoiser(side):
    given = {"self_attention": (), "cross_attention": ()} | NETWORKS[side]
    net = UNet(
        UNetConfig(
            resolution=side,
            channels=16,
            blocks=1,
            head_channels=16,
            token_dim=48,
            embeddings=SPECS,
            **given,
        )
    )
    generator = torch.Generator().manual_seed(side)
    for p in net.parameters():
        p.data.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return Denoiser(net, residual=net.config.residual).eval().requires_grad_(False)


def stage(side, **options):
    settings = {"steps": 3, "guidance": 1.5, **options}
    return CascadeStage(name=str(side), denoiser=denoiser(side), resolution=side, **settings)


def texts(rows, seed=0, low=None):
    """Rows of the prompts with :data:`LENGTHS`, as long as the longest of them."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(8, *shape, generator=generator)

    lengths = torch.tensor(LENGTHS)
    masks = {"clip_text": lengths, "t5": lengths.flip(0) + seed}
    masks = {name: torch.arange(max(n)) < n[:, None] for name, n in masks.items()}
    sequences = {n: randn(m.shape[1], WIDTH) * m[..., None] for n, m in masks.items()}
    pooled = {"clip_text_pooled": randn(WIDTH), "clip_image": randn(WIDTH)}
    low_res = None if low is None else randn(3, low, low).clamp(-1, 1)
    whole = Conditioning(sequences, masks, pooled, low_res=low_res)[torch.tensor([*rows])]
    longest = {name: int(m.sum(dim=1).max()) for name, m in whole.masks.items()}
    return replace(
        whole,
        sequences={n: t[:, : longest[n]] for n, t in whole.sequences.items()},
        masks={n: t[:, : longest[n]] for n, t in whole.masks.items()},
    )


def painted(cond, rows):
    """A map for every token of every second row."""
    maps = {}
    for name, mask in cond.masks.items():
        generator = torch.Generator().manual_seed(1)
        whole = torch.rand(8, 64, 4, 4, generator=generator)[torch.tensor([*rows])]
        odd = torch.tensor([*rows])[:, None] % 2 == 1
        maps[name] = whole[:, : mask.shape[1]] * (mask & odd)[..., None, None]
    return replace(cond, paint=Paint(maps))


CASES = {
    "16": [stage(16)],
    "16 painted": [stage(16)],
    "16 bfloat16": [stage(16, precision="bfloat16")],
    "32": [stage(32)],
    "64": [stage(64)],
    "64 in tiles": [stage(64, tile=40, overlap=8, guidance=0.0)],
    "cascade": [stage(16), stage(32, guidance=0.0), stage(64, guidance=0.0)],
}


def drawn(name, rows):
    low = {"32": 16, "64": 32}.get(name[:2])
    cond = texts(rows, low=low)
    cond = painted(cond, rows) if "painted" in name else cond
    control = Control(negative=texts(rows, seed=1))
    seeds = [100 + row for row in rows]
    return dict(sample(CASES[name], cond, seed=seeds, control=control))


@pytest.mark.parametrize("name", CASES)
def test_a_row_has_the_same_bits_in_any_batch(name):
    expected = drawn(name, range(8))
    for rows in ([0], [3], [4, 1], [2, 0, 5], [7, 6, 5, 4, 3, 2, 1, 0]):
        for side, x in drawn(name, rows).items():
            assert torch.equal(x, expected[side][rows]), (side, rows)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("name", ["16 painted", "cascade"])
def test_threads_change_no_bit(name, threads):
    expected = drawn(name, range(8))
    torch.set_num_threads(threads)
    try:
        for rows in ([*range(8)], [3]):
            for side, x in drawn(name, rows).items():
                assert torch.equal(x, expected[side][rows]), (side, rows)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("side", NETWORKS)
def test_it_computes_what_the_network_does(side):
    rows = [0, 4, 1]
    cond, sigma = texts(rows, low=side // 2), torch.tensor(0.7, dtype=torch.float64)
    x = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    net = denoiser(side)
    expected = net(x, sigma, cond)
    with RowInvariant():
        found = net(x, sigma, padded(cond))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert torch.equal(net(x, sigma, cond), expected)
