"""Columns without many gaps, and text that is wrapped and cut to a width."""

from pipelines.layout import columns_for, count_missing_glyphs, font_for, truncate, wrap

LONG = "a" + " very" * 60 + " end"
WIDTH, LINES = 288, 5


def test_a_grid_leaves_few_gaps():
    assert {n: columns_for(n) for n in (1, 2, 6, 8, 9, 10, 16)} == {
        1: 1,
        2: 2,
        6: 3,
        8: 4,
        9: 3,
        10: 5,
        16: 4,
    }


def test_captions_are_wrapped_and_cut():
    letters = font_for(LONG, 17)
    lines = wrap(LONG, letters, WIDTH, LINES)
    assert len(lines) == LINES
    assert lines[-1].endswith("very …")
    assert truncate("x" * 99, letters, WIDTH).endswith("x…")
    assert max(letters.getlength(line) for line in lines) <= WIDTH
    assert wrap("a fox", letters, WIDTH, LINES) == ["a fox"]
    whole = wrap("山" * 40, letters, WIDTH, LINES)
    assert "".join(whole) == "山" * 40  # of a text without spaces nothing is lost either


def test_letters_that_no_font_has_are_counted():
    assert count_missing_glyphs(["a fox", "Köln, Straße", "\U000f0000"]) == 1
