"""`parse` inverts `write`, over every form, and explains what it cannot read."""

import re

import numpy as np
import pytest

from pipelines.demo.captions import DIGITS, FILLERS, RELATIONS, Ask, AskItem, parse, write
from pipelines.demo.scenes import INKS, PAPERS, PLACES, draw


@pytest.fixture(scope="module")
def captioned():
    scenes = [draw(0, "train", index)[0] for index in range(2500)]
    rng = np.random.default_rng(0)
    return [(scene, write(scene, rng)) for scene in scenes]


def test_captions_parse_back_to_their_scene(captioned):
    for scene, caption in captioned:
        ask = parse(caption)
        placed = ask.items[0].place is not None
        expected = [(item.digit, item.ink, item.place if placed else None) for item in scene.items]
        found = [(item.digit, item.ink, item.place) for item in ask.items]
        assert sorted(found, key=str) == sorted(expected, key=str), caption
        assert ask.paper == (scene.paper if "paper" in caption else None), caption


def test_lengths_span_short_to_long(captioned):
    lengths = [len(caption.split()) for _, caption in captioned]
    assert min(lengths) == 3
    assert 55 <= max(lengths) <= 65
    assert 12 <= np.median(lengths) <= 20


def test_most_captions_say_everything(captioned):
    asks = [parse(caption) for _, caption in captioned]
    placed = np.mean([all(item.place for item in ask.items) for ask in asks])
    assert placed == pytest.approx(0.85, abs=0.03)
    assert np.mean([ask.paper is not None for ask in asks]) == pytest.approx(0.5, abs=0.03)
    for relation in RELATIONS:
        assert any(f" {relation} " in caption for _, caption in captioned)


def test_captions_keep_to_the_vocabulary(captioned):
    said = {word for _, caption in captioned for word in re.findall(r"[a-z]+", caption.lower())}
    tables = {*DIGITS, *INKS, *PAPERS, *PLACES, *" ".join(RELATIONS).split()}
    assert tables <= said
    assert said <= tables | {*FILLERS.split(), "and", "with", "ink"}


@pytest.mark.parametrize(
    ("caption", "ask"),
    [
        ("a blue three", Ask((AskItem(3, "blue", None),), None)),
        ("An EIGHT in orange ink; on pink paper!", Ask((AskItem(8, "orange", None),), "pink")),
        (
            "a red seven to the left of a green two",
            Ask((AskItem(7, "red", "left"), AskItem(2, "green", "right")), None),
        ),
        (
            "a red seven below a green two on grey paper",
            Ask((AskItem(7, "red", "bottom"), AskItem(2, "green", "top")), "grey"),
        ),
        ("a red one on the left of the picture", Ask((AskItem(1, "red", "left"),), None)),
    ],
)
def test_users_may_write_their_own(caption, ask):
    assert parse(caption) == ask


@pytest.mark.parametrize(
    ("caption", "remedy"),
    [
        ("", "one to three"),
        ("a red 7", "digit in words"),
        ("a dragon", "as in 'a blue three on the left, on grey paper'"),
        ("a teal three", "red, green, blue"),
        ("a red seven a blue two on the left", "'and' between them"),
        ("a red seven above", "'and' between them"),
        ("a red one on the left and a blue two on the left", "its own place"),
        ("a red one in the centre, a blue two at the top", "do not combine"),
        ("a red one, a red two, a red three and a red four", "one to three"),
        ("a red one on grey paper, on pink paper", "at most one"),
        ("Two digits: a red one", "leave the number out"),
    ],
)
def test_what_cannot_be_read_is_explained(caption, remedy):
    with pytest.raises(ValueError, match=remedy):
        parse(caption)
