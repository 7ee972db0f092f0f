"""Trees whose boundaries are not at equal shares of p(σ)."""

import pytest

from ediffi_core.noise import Interval
from ediffi_core.tree import EQUAL_SHARES, Warp, check_cover, interval, intervals_of

THIRD = Warp((1 / 3,))


def test_the_identity_leaves_dyadic_fractions_exact():
    assert interval("E9_511", EQUAL_SHARES) == Interval(511 / 512, 1.0)
    assert interval("E9_511") == interval("E9_511", EQUAL_SHARES)


def test_boundaries_are_the_images_of_a_level_s_cuts_and_deeper_levels_halve_them():
    warp = Warp((0.1, 0.3, 0.35))
    assert [interval(f"E2_{i}", warp).q_hi for i in range(4)] == [0.1, 0.3, 0.35, 1.0]
    assert interval("E1_0", warp) == Interval(0.0, 0.3)
    assert interval("E3_7", warp) == Interval(0.675, 1.0)
    assert interval("E0_0", warp) == Interval(0.0, 1.0)
    assert interval("E1_0", THIRD) == Interval(0.0, 0.333333)


def test_children_lie_in_their_parents_and_every_level_covers_once():
    warp = Warp((0.123457, 0.3, 0.9))
    for level in range(1, 10):
        names = [f"E{level}_{i}" for i in range(2**level)]
        check_cover({name: interval(name, warp) for name in names})
        for i, name in enumerate(names):
            assert interval(f"E{level - 1}_{i // 2}", warp).holds(interval(name, warp))


def test_the_complement_fits_its_warped_neighbours_exactly():
    found = intervals_of(["E3_7", "M_C", "E1_0"], THIRD)
    assert found["M_C"] == Interval(0.333333, found["E3_7"].q_lo)
    check_cover(found)


@pytest.mark.parametrize(
    ("cuts", "why"),
    [
        ((0.3, 0.6), "1, 3, 7, … quantiles, not 2"),
        ((0.3, 0.2, 0.6), "must rise"),
        ((0.0,), "must rise from above 0"),
        ((1.0,), "to below 1"),
    ],
)
def test_impossible_boundaries_are_refused(cuts, why):
    with pytest.raises(ValueError, match=why):
        Warp(cuts)


def test_an_expert_without_noise_levels_is_refused():
    with pytest.raises(ValueError, match="leave E2_0 less than 1e-6"):
        interval("E2_0", Warp((1e-7, 0.3, 0.9)))
