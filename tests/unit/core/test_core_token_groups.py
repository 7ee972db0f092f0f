"""Attention by groups of rows gives what attention to all rows at once gives."""

import pytest
import torch

from ediffi_core.conditioning import Conditioning
from ediffi_core.embeddings import EmbeddingSpec
from ediffi_core.token_groups import LANES, all_rows_at_once, by_length
from ediffi_core.unet import UNet, UNetConfig

SPECS = (
    EmbeddingSpec(name="t5", dim=12, kind="sequence"),
    EmbeddingSpec(name="clip_text", dim=8, kind="sequence"),
)
LENGTHS = {"t5": 50, "clip_text": 40}


def network():
    torch.manual_seed(0)
    config = UNetConfig(
        resolution=8,
        channels=8,
        channel_mult=(1, 2),
        blocks=1,
        cross_attention=(8, 4),
        head_channels=8,
        token_dim=16,
        embeddings=SPECS,
    )
    net = UNet(config)
    for parameter in net.parameters():  # the layers that begin at zero would hide attention
        torch.nn.init.normal_(parameter, std=0.2)
    return net


def captions(rows, seed=0):
    """Conditioning with texts of many lengths; the first rows have none."""
    generator = torch.Generator().manual_seed(seed)
    sequences, masks = {}, {}
    for spec in SPECS:
        length = LENGTHS[spec.name]
        counts = (torch.rand(rows, generator=generator) ** 3 * length).long()
        counts[: rows // 4] = 0
        masks[spec.name] = torch.arange(length) < counts[:, None]
        values = torch.randn(rows, length, spec.dim, generator=generator)
        sequences[spec.name] = values * masks[spec.name][..., None]
    return Conditioning(sequences=sequences, masks=masks)


def evaluated(rows):
    """The network's output, the gradients of its parameters and the tokens that it made."""
    net, cond = network(), captions(rows)
    x = torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    c_noise = torch.linspace(-1, 1, rows)
    out = net(x, c_noise, cond)
    (out * x).sum().backward()
    tokens, _ = net.projection(cond, c_noise)
    return out.detach(), [p.grad for p in net.parameters()], tokens


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 33])
def test_output_and_gradients_are_those_of_all_rows_at_once(rows):
    out, grads, tokens = evaluated(rows)
    assert tokens.groups is not None
    with all_rows_at_once():
        plain, expected, tokens = evaluated(rows)
    assert tokens.groups is None
    torch.testing.assert_close(out, plain, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_groups_hold_every_row_and_its_tokens_once():
    mask = torch.zeros(40, 100, dtype=torch.bool)
    for row in range(40):  # holes, as between the sequences of a batch
        mask[row, torch.randperm(100)[: (row * 37) % 90 + 1]] = True
    values = torch.arange(40 * 100.0).view(40, 100, 1)
    found = by_length(values, mask)
    rows = torch.cat([g.rows for g in found.groups])
    assert sorted(rows.tolist()) == list(range(40))
    assert rows[found.inverse].tolist() == list(range(40))
    for group in found.groups:
        assert group.mask.shape == group.values.shape[:2]
        assert group.mask.shape[1] % LANES == 0
        for row, tokens, kept in zip(*group, strict=True):
            assert tokens[kept, 0].tolist() == values[row, mask[row], 0].tolist()
    padded = sum(g.mask.numel() for g in found.groups)
    assert mask.sum() <= padded < 0.7 * mask.numel()


def test_a_batch_without_padding_stays_whole():
    mask = torch.ones(16, 32, dtype=torch.bool)
    assert by_length(torch.zeros(16, 32, 4), mask) is None


def test_devices_whose_numbers_must_be_waited_for_attend_to_all_rows_at_once():
    mask = torch.zeros(16, 100, dtype=torch.bool, device="meta")
    assert by_length(torch.zeros(16, 100, 4, device="meta"), mask) is None
