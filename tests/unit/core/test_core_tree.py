"""Names, parents and intervals of the tree; gaps and overlaps are refused."""

from fractions import Fraction
from itertools import pairwise

import pytest

from ediffi_core.noise import Interval
from ediffi_core.tree import (
    check_cover,
    complement,
    interval,
    intervals_of,
    level_and_index,
    parent,
)


@pytest.mark.parametrize("level", range(8))
def test_a_level_cuts_the_noise_into_equal_shares_lowest_first(level):
    pieces = [interval(f"E{level}_{i}") for i in range(2**level)]
    assert pieces[0].q_lo == 0
    assert pieces[-1].q_hi == 1
    for low, high in pairwise(pieces):
        assert low.q_hi == high.q_lo
    assert {Fraction(p.q_hi) - Fraction(p.q_lo) for p in pieces} == {Fraction(1, 2**level)}
    check_cover({f"E{level}_{i}": p for i, p in enumerate(pieces)})


@pytest.mark.parametrize("name", ["E1_0", "E1_1", "E3_5", "E9_511", "E9_0", "E50_7"])
def test_the_parent_is_the_half_above_that_holds_the_child(name):
    level, index = level_and_index(name)
    above = parent(name)
    assert level_and_index(above) == (level - 1, index // 2)
    mine, theirs = interval(name), interval(above)
    assert theirs.q_lo <= mine.q_lo < mine.q_hi <= theirs.q_hi
    assert (mine.q_hi - mine.q_lo) * 2 == theirs.q_hi - theirs.q_lo


def test_chains_of_parents_end_at_the_root():
    chain = ["E9_511"]
    while (above := parent(chain[-1])) is not None:
        chain.append(above)
    assert chain == [f"E{level}_{2**level - 1}" for level in range(9, -1, -1)]
    assert parent("M_C") == "E0_0"
    assert parent("E0_0") is None


@pytest.mark.parametrize(
    ("names", "lo", "hi"),
    [
        (["E9_511", "E3_0"], 0.125, 511 / 512),
        (["E3_0", "E9_511"], 0.125, 511 / 512),
        (["E9_511"], 0, 511 / 512),
        (["E3_0"], 0.125, 1),
        (["E2_0", "E3_2", "E2_3"], 0.375, 0.75),
        (["E9_511", "E9_510", "E3_0", "E3_1"], 0.25, 510 / 512),
        ([], 0, 1),
    ],
)
def test_the_complement_is_what_the_others_leave(names, lo, hi):
    assert complement(names) == Interval(lo, hi)
    experts = intervals_of([*names, "M_C"])
    assert experts["M_C"] == Interval(lo, hi)
    check_cover(experts)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["E1_0", "E1_1"], "E1_0, E1_1 leave nothing of p.* to M_C"),
        (["E0_0"], "E0_0 leave nothing"),
        (["E1_0", "E2_0"], "E1_0 and E2_0 overlap|E2_0 and E1_0 overlap"),
        (["E2_0", "E1_0"], "E1_0 and E2_0 overlap|E2_0 and E1_0 overlap"),
        (["E2_1"], "overlap.*remove one of them"),
        (["E2_0", "E3_4"], "overlap.*remove one of them"),
    ],
)
def test_no_complement_where_it_would_be_empty_or_in_pieces(names, text):
    with pytest.raises(ValueError, match=text):
        complement(names)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["E1_0"], "no expert covers quantiles 0.5 to 1 of p.*above E1_0.*M_C"),
        (["E1_1"], "no expert covers quantiles 0 to 0.5.*between the low end and E1_1"),
        (["E2_0", "E1_1"], "quantiles 0.25 to 0.5.*between E2_0 and E1_1"),
        (["E1_0", "E1_1", "E2_1"], "E1_0 and E2_1 overlap on quantiles 0.25 to 0.5"),
        (["E0_0", "E9_511"], "E0_0 and E9_511 overlap on quantiles 0.998047 to 1"),
        ([], "no expert covers quantiles 0 to 1"),
    ],
)
def test_gaps_and_overlaps_are_named(names, text):
    with pytest.raises(ValueError, match=text):
        check_cover(intervals_of(names))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("E1_2", "'E1_2' does not exist: level 1 has indices 0 to 1"),
        ("E0_1", "level 0 has indices 0 to 0"),
        ("E9_512", "indices 0 to 511"),
        ("E51_0", "limit is level 50"),
        ("E99999999999_0", "limit is level 50"),
        *(
            (name, "is not an expert's name; write E<level>_<index>")
            for name in (
                "",
                "e1_0",
                "E1",
                "E1_0 ",
                "E-1_0",
                "M_C",
                "E1_0_0",
                "E01_0",
                "E1_00",
                "E١_0",
            )
        ),
    ],
)
def test_names_that_stand_for_nothing_are_refused(name, text):
    with pytest.raises(ValueError, match=text):
        interval(name)
