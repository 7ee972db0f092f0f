"""Contact sheets: every picture is there, whole, and every caption below its pictures."""

import numpy as np
import pytest

from pipelines.models.sheet import contact_sheet, default_scale, grid

PICTURES = np.stack([np.full((8, 8, 3), 20 * (i + 1), np.uint8) for i in range(6)])
LONG = "Eine grüne Kröte " * 40


def levels(sheet):
    """The grays of all pictures on a sheet, in reading order."""
    flat = np.asarray(sheet)
    blocks = [flat[y, x, 0] for y in range(0, flat.shape[0], 4) for x in range(0, flat.shape[1], 4)]
    return list(dict.fromkeys(int(v) for v in blocks if v in PICTURES))


def test_a_grid_has_all_pictures_in_order():
    sheet = grid(PICTURES, columns=4, scale=2)
    assert sheet.size == (4 * 20 + 4, 2 * 20 + 4)
    assert levels(sheet) == [20, 40, 60, 80, 100, 120]


@pytest.mark.parametrize(("columns", "scale"), [(1, 1), (3, 4), (6, 32)])
def test_a_sheet_has_all_pictures_and_their_captions(columns, scale):
    captions, notes = [f"a {c}" for c in "bcdefg"], [f"seed {i}" for i in range(6)]
    sheet = contact_sheet(PICTURES, captions, notes, columns=columns, scale=scale)
    assert set(levels(sheet)) >= {20, 40, 60, 80, 100, 120}
    other = contact_sheet(PICTURES, ["a b"] * 6, notes, columns=columns, scale=scale)
    assert (sheet.size == other.size) and sheet.tobytes() != other.tobytes()


def ink(sheet):
    return int((np.asarray(sheet).min(axis=2) < 60).sum())


def test_neighbours_with_one_caption_show_it_once():
    white = np.full((6, 8, 8, 3), 255, np.uint8)
    words = "a frog on a chair"
    once, mixed = (
        contact_sheet(white, captions, [""] * 6, columns=3, scale=32)
        for captions in ([words] * 6, [words, words + ".", words] * 2)
    )
    assert 0 < ink(once) < 0.5 * ink(mixed)


def test_what_holds_for_all_pictures_stands_below_them():
    texts = ["a b"] * 6, ["seed 1"] * 6
    without, short, long = (
        contact_sheet(PICTURES, *texts, columns=3, scale=32, footer=footer)
        for footer in ("", "then: a rocket", LONG)
    )
    assert without.width == short.width == long.width
    assert without.height < short.height < long.height < 1.3 * without.height
    above = np.asarray(short)[: without.height]
    assert np.array_equal(above[:-20], np.asarray(without)[:-20])
    assert np.asarray(short)[without.height :].min() < 160


def test_a_long_caption_is_cut_and_leaves_the_pictures_alone():
    notes = ["seed 1"] * 6
    short, long = (
        contact_sheet(PICTURES, [f"{text} {i}" for i in range(6)], notes, columns=3, scale=32)
        for text in ("a", LONG)
    )
    assert long.width == short.width and short.height < long.height < 1.25 * short.height
    assert levels(long) >= [20, 40, 60]


def test_small_pictures_are_enlarged_and_large_ones_are_not():
    assert [default_scale(side) for side in (16, 64, 256, 1024)] == [16, 4, 1, 1]
