"""Prompts from files and seeds from text; every mistake is one line."""

import io
import sys

import pytest

from pipelines.models.prompts import assign_seeds, parse_seeds, read_prompts


def test_blank_lines_and_comments_are_skipped(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeff# frogs\r\n\r\na frog\r\n  eine Kröte \n # no\n山\n".encode())
    assert read_prompts(str(file)) == ["a frog", "eine Kröte", "山"]


def test_a_dash_is_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a frog\na #rocket\n")))
    assert read_prompts("-") == ["a frog", "a #rocket"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "there is no file .*prompts.txt; --prompts needs one prompt a line"),
        (b"", "has no prompts; write one a line"),
        (b"# a\n\n", "has no prompts"),
        (b"a frog\n\xff\xd8\xff", r"is not UTF-8 text \(line 2\)"),
        (b"a\0b", "is not a text file"),
    ],
)
def test_a_file_without_prompts_is_refused(tmp_path, data, message):
    file = tmp_path / "prompts.txt"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(ValueError, match=message) as refused:
        read_prompts(str(file))
    assert "\n" not in str(refused.value)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        read_prompts(str(tmp_path))


def test_seeds_are_a_list_or_a_range():
    assert parse_seeds("3,7, 11") == [3, 7, 11]
    assert parse_seeds("0:4,9") == [0, 1, 2, 3, 9]


@pytest.mark.parametrize(
    "text", ["", "3,", "a", "1.5", "-1", "4:4", "5:3", "1:2:3", "0:9999999999"]
)
def test_other_seeds_are_refused(text):
    with pytest.raises(ValueError, match="--seeds") as refused:
        parse_seeds(text)
    assert "\n" not in str(refused.value)


def test_every_picture_has_its_seed():
    assert assign_seeds(1, None, [0, 1, 2]) == [[0, 1, 2]]
    assert assign_seeds(3, None, [3, 7, 11]) == [[3], [7], [11]]
    assert assign_seeds(2, 2, [1, 2, 3, 4]) == [[1, 2], [3, 4]]
    assert assign_seeds(2, 3, [1, 2, 3]) == [[1, 2, 3], [1, 2, 3]]


def test_seeds_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="has 3 seeds for 2 prompts; give a multiple of 2"):
        assign_seeds(2, None, [1, 2, 3])
    with pytest.raises(ValueError, match="has 1 seed for 2 prompts; give a multiple"):
        assign_seeds(2, None, [1])
    with pytest.raises(ValueError, match=r"2 seeds for 2 prompts with -n 3; give 6 \(or 3\)"):
        assign_seeds(2, 3, [1, 2])
