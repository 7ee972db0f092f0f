"""Draws are a pure function of (seed, purpose, index) and pass statistical checks."""

import hashlib

import numpy as np
import pytest
import torch
from scipy import stats

from ediffi_core import draws

FAR = 10**12
MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def reference_mix(x):
    """SplitMix64's finaliser in Python integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def reference_key(seed, purpose):
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "little")


@pytest.mark.parametrize("index", [0, 1, 77, FAR, FAR + 1, 2**62])
def test_bits_are_splitmix64(index):
    start = reference_mix((index * GOLDEN + reference_key(5, "a")) & MASK)
    expected = [reference_mix((start + (k + 1) * GOLDEN) & MASK) for k in range(6)]
    found = draws.bits(5, "a", torch.tensor([index]), 6)[0]
    assert [x & MASK for x in found.tolist()] == expected
    expected_u = [(x >> 11) / 2**53 for x in expected]
    assert draws.uniform(5, "a", torch.tensor([index]), 6)[0].tolist() == expected_u


@pytest.mark.parametrize("index", [0, 1, 77, FAR, FAR + 1, 2**62])
def test_stratified_is_the_golden_sequence_in_exact_integers(index):
    expected = (((index * GOLDEN + reference_key(5, "a")) & MASK) >> 11) / 2**53
    assert draws.stratified(5, "a", torch.tensor([index])).item() == expected


KINDS = {
    "uniform": lambda index: draws.uniform(1, "split", index, 7),
    "stratified": lambda index: draws.stratified(1, "split", index),
    "normal": lambda index: draws.normal(1, "split", index, (3, 5, 7)),
    "normal even": lambda index: draws.normal(1, "split", index, (3, 16, 16)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [0, FAR])
def test_any_split_of_the_indices_gives_the_same_bits(kind, start):
    draw = KINDS[kind]
    index = torch.arange(start, start + 61)
    whole = draw(index)
    for size in (1, 2, 3, 5, 8, 13, 60):
        assert torch.equal(torch.cat([draw(part) for part in index.split(size)]), whole), size
    order = torch.from_numpy(np.random.default_rng(0).permutation(61))
    assert torch.equal(draw(index[order]), whole[order])
    # Strided workers: rank r of 4 draws every fourth picture.
    for rank in range(4):
        assert torch.equal(draw(index[rank::4]), whole[rank::4])
    assert torch.equal(draw(index), whole)


def test_streams_do_not_correlate():
    """Seeds, purposes, neighbouring indices and columns: |r| of 20,000 draws is within 5 σ."""
    n = 20_000
    index = torch.arange(n + 1)
    streams = [
        draws.uniform(s, p, index, 3) for s in (0, 1, 2) for p in ("train/eps", "train/sigma")
    ]
    columns = [c[:n] for u in streams for c in u.T] + [u[1:, 0] for u in streams]
    r = torch.corrcoef(torch.stack(columns))
    assert (r - torch.eye(len(r))).abs().max() < 5 / n**0.5


def test_every_bit_is_fair_and_flips_with_the_index():
    n = 40_000
    words = draws.bits(0, "bits", torch.arange(n), 1)[:, 0]
    ones = (words[:, None] >> torch.arange(64)) & 1
    assert (ones.double().mean(0) - 0.5).abs().max() < 5 * 0.5 / n**0.5
    flips = ones[1:] ^ ones[:-1]
    assert (flips.double().mean(0) - 0.5).abs().max() < 5 * 0.5 / n**0.5


def test_uniform_fills_the_unit_interval():
    u = draws.uniform(0, "uniform", torch.arange(FAR, FAR + 50_000), 2)
    assert u.dtype == torch.float64
    assert ((u >= 0) & (u < 1)).all()
    assert (torch.frac(u * 2**53) == 0).all()
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    assert len(u.flatten().unique()) == u.numel()


def test_normal_is_standard_normal():
    n, shape = 2_000, (3, 7, 5)
    z = draws.normal(0, "normal", torch.arange(n), shape)
    assert z.dtype == torch.float32
    assert z.shape == (n, *shape)
    flat = z.double().flatten().numpy()
    assert stats.kstest(flat, "norm").pvalue > 1e-3
    # Standard errors of the first four moments of a normal: 1, √2, √15, √96 over √n.
    for power, moment, spread in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((flat**power).mean() - moment) < 4.5 * (spread / flat.size) ** 0.5
    assert 4 < np.abs(flat).max() < 6.7


def test_the_two_halves_of_box_muller_are_independent():
    """Cosine and sine share a radius; squares and signs must still be uncorrelated."""
    z = draws.normal(3, "halves", torch.arange(30_000), (2,)).double()
    for f in (lambda x: x, torch.square, torch.abs):
        assert abs(torch.corrcoef(f(z).T)[0, 1]) < 5 / 30_000**0.5
    radius = z.square().sum(1)
    assert stats.kstest(radius.numpy(), stats.chi2(2).cdf).pvalue > 1e-3


@pytest.mark.parametrize("start", [0, 123_457, FAR])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_any_64_consecutive_stratified_draws_are_evenly_spread(seed, start):
    u = draws.stratified(seed, "spread", torch.arange(start, start + 2_064))
    assert ((u >= 0) & (u < 1)).all()
    running = torch.nn.functional.one_hot((u * 16).long(), 16).cumsum(0)
    windows = running[64:] - running[:-64]
    assert windows.min() >= 3
    assert windows.max() <= 5


def test_stratified_streams_are_shifted_against_each_other():
    index = torch.tensor([0])
    shifts = [draws.stratified(s, p, index).item() for s in range(50) for p in ("a", "b")]
    assert stats.kstest(shifts, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("pictures", [55, 96, 144, 233])
def test_a_picture_that_comes_again_meets_unrelated_noise_levels(pictures):
    """One golden sequence over all rounds brings a picture nearly the same value every round, where
    their number is near a Fibonacci number."""
    rounds = 64
    index = torch.arange(pictures * rounds)
    u = draws.rotated(1, "a", index, pictures).reshape(rounds, pictures)
    spread = u.std(dim=0)  # of each picture's values; 0.289 if they are independent and uniform
    assert float(spread.min()) > 0.2
    if pictures in (144, 233):
        locked = draws.stratified(1, "a", index[: 8 * pictures]).reshape(8, pictures)
        apart = (locked[1:] - locked[:-1] + 0.5).remainder(1) - 0.5
        assert float(apart.abs().max()) < 0.01
    # Neighbouring rounds are no shifted copies by one fixed step either.
    steps = (u[1:] - u[:-1]).remainder(1)[:, 0]
    assert float(steps.std()) > 0.2


@pytest.mark.parametrize("pictures", [2, 3, 10, 144, 500])
@pytest.mark.parametrize(("seed", "turn"), [(0, 0), (7, 1), (2**32, 1000)])
def test_every_round_is_evenly_spread(seed, pictures, turn):
    u = draws.rotated(seed, "spread", torch.arange(pictures) + turn * pictures, pictures).sort()[0]
    assert float(u[0]) >= 0 and float(u[-1]) < 1
    gaps = torch.cat([u.diff(), (u[:1] + 1 - u[-1:])])
    assert float(gaps.max()) * pictures < 3  # three-distance theorem: of the golden ratio


def test_a_round_begins_where_the_whole_begins():
    index = torch.arange(500)
    whole = draws.rotated(3, "a", index, 96)
    assert torch.equal(whole[100:300], draws.rotated(3, "a", index[100:300], 96))
    assert not torch.equal(whole, draws.rotated(4, "a", index, 96))
