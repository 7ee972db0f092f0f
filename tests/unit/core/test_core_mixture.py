"""Densities in pieces: what an expert trains on when it is not p(σ) in one interval."""

import math

import pytest
import torch

from ediffi_core import draws
from ediffi_core.noise import EVERYTHING, Interval, Mixture, NoiseDistribution

NOISE = NoiseDistribution()
U = torch.cat(
    [
        draws.stratified(0, "test", torch.arange(20_000)),
        torch.tensor([0.0, 2.0**-60, 0.5, 1 - 2.0**-53], dtype=torch.float64),
    ]
)


@pytest.mark.parametrize("interval", [EVERYTHING, Interval(0.5, 1.0), Interval(0.123457, 0.9)])
def test_one_piece_is_bit_for_bit_the_interval(interval):
    alone = Mixture.of([[interval.q_lo, interval.q_hi, 1.0]])
    assert torch.equal(alone.draw(U, NOISE), interval.draw(U, NOISE))


def test_pieces_get_their_weights_and_within_them_p_of_sigma():
    mixture = Mixture.of([[0.0, 0.25, 0.1], [0.25, 0.5, 0.6], [0.75, 1.0, 0.3]])
    q = NOISE.quantile(mixture.draw(U[:20_000], NOISE))
    for piece, weight in zip(mixture.pieces, mixture.weights, strict=True):
        inside = q[(q > piece.q_lo) & (q < piece.q_hi)]
        assert len(inside) / 20_000 == pytest.approx(weight, abs=2e-4)
        assert float(inside.mean()) == pytest.approx((piece.q_lo + piece.q_hi) / 2, abs=1e-3)


def test_sigma_rises_with_u_and_stays_within_the_pieces_to_the_last_bit():
    mixture = Mixture.of([[0.0, 0.3, 0.1], [0.3, 0.7, 0.2], [0.7, 1.0, 0.7]])
    at_edges = [math.nextafter(w, to) for w in (0.1, 0.3, 0.1 + 0.2) for to in (0, 1)]
    u = torch.cat([U, torch.tensor(at_edges, dtype=torch.float64)]).sort().values
    sigma = mixture.draw(u, NOISE)
    assert bool((sigma.diff() >= 0).all())
    low, high = Interval(0.3, 0.7).bounds(NOISE)
    first = torch.tensor([0.1, math.nextafter(0.1, 0)], dtype=torch.float64)
    assert mixture.draw(first, NOISE)[0] == low and mixture.draw(first, NOISE)[1] < low
    assert bool(sigma.isfinite().all()) and bool((sigma > 0).all())
    assert mixture.draw(u.reshape(-1, 2), NOISE).shape == (len(u) // 2, 2)
    assert float(sigma[-1]) >= high


def test_overlap_shares_the_draws_outside_by_length():
    assert Mixture.around(Interval(0.5, 1.0), 0.2).rows == [[0.0, 0.5, 0.2], [0.5, 1.0, 0.8]]
    around = Mixture.around(Interval(0.25, 0.625), 0.5)
    assert around.rows == [[0.0, 0.25, 0.2], [0.25, 0.625, 0.5], [0.625, 1.0, 0.3]]
    assert Mixture.of(around.rows) == around
    odd = Mixture.around(Interval(0.420075, 1.0), 0.2)
    assert odd.rows == [[0.0, 0.420075, 0.2], [0.420075, 1.0, 0.8]]
    # The outside piece has the interval's density where the share is that of p(σ).
    assert Mixture.around(Interval(0.0, 0.25), 0.75).rows == [[0.0, 0.25, 0.25], [0.25, 1.0, 0.75]]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([], "at least one piece"),
        ([[0.0, 1.0]], "a piece of a density is"),
        ([[0.5, 1.0, 0.5], [0.0, 0.5, 0.5]], "must rise and not overlap"),
        ([[0.0, 0.6, 0.5], [0.5, 1.0, 0.5]], "must rise and not overlap"),
        ([[0.0, 0.5, 0.0], [0.5, 1.0, 1.0]], "leave out what is never drawn"),
        ([[0.0, 0.5, 0.5], [0.5, 1.0, 0.4]], "sum to 0.9, not to 1"),
        ([[0.5, 0.5, 1.0]], "q_lo < q_hi"),
    ],
)
def test_a_wrong_density_is_refused_in_words(rows, why):
    with pytest.raises(ValueError, match=why):
        Mixture.of(rows)
    with pytest.raises(ValueError, match="leaves nothing outside"):
        Mixture.around(EVERYTHING, 0.1)
