"""Captions describe a scene and are parsed back to the same."""

import pytest

from pipelines.demo.captions import Ask, AskItem, parse, write
from pipelines.demo.drawings import ARTISTS, CONCEPTS, keywords
from pipelines.demo.scenes import compose, generator

NUMBER = {c.name: n for n, c in enumerate(CONCEPTS)}
ROCKET, FROG, CAT = NUMBER["rocket"], NUMBER["frog"], NUMBER["cat"]


def captions(split: str, count: int = 3000):
    for index in range(count):
        scene = compose(5, split, index)
        yield scene, write(scene, generator(5, split, index, "caption"))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_what_is_written_is_read_back(split):
    named = {"ground": 0, "artist": 0, "places": 0}
    for scene, caption in captions(split):
        ask = parse(caption)
        at = {item.concept: item.place for item in scene.items}
        assert [item.concept for item in ask.items] == list(at)  # from left to right
        assert all(item.place in (None, at[item.concept]) for item in ask.items)
        assert ask.ground in (None, scene.ground)
        assert ask.artist in (None, scene.artist)
        assert ask.unseen == scene.unseen
        named["ground"] += ask.ground is not None
        named["artist"] += ask.artist is not None
        named["places"] += all(item.place for item in ask.items)
    assert all(0.7 < n / 3000 < 0.9 for n in named.values()), named


@pytest.mark.slow
def test_captions_have_from_3_to_60_words():
    lengths = [len(caption.split()) for _, caption in captions("train", 20_000)]
    assert min(lengths) == 3
    assert 45 < max(lengths) <= 65


def test_no_caption_of_training_has_an_unseen_word():
    unseen = {w for c in CONCEPTS for w in c.unseen}
    for _, caption in captions("train"):
        words = caption.lower().replace(",", " ").replace(".", " ").split()
        assert not unseen & set(words)
        assert not any(w in caption.lower() for w in unseen if " " in w)


def test_keywords_are_cldr_s_and_name_no_concept():
    names = {w for c in CONCEPTS for n in (*c.names, *c.unseen) for w in n.lower().split()}
    found = [keywords(n) for n in range(len(CONCEPTS))]
    assert "animal" in found[FROG]
    assert not names & {w for words in found for w in words}


@pytest.mark.parametrize(
    ("caption", "ask"),
    [
        ("a frog", Ask((AskItem(FROG, None),), None, None)),
        ("a toad in the centre", Ask((AskItem(FROG, "centre"),), None, None, unseen=True)),
        (
            "A frog left of a rocket, on a pink background, Fluent style",
            Ask((AskItem(FROG, "left"), AskItem(ROCKET, "right")), "pink", "Fluent"),
        ),
        (
            "on blue, a rocket right of a cat, drawn by Noto v1",
            Ask((AskItem(ROCKET, "right"), AskItem(CAT, "left")), "blue", "Noto v1"),
        ),
        ("a cat (animal, tiger) stands there", Ask((AskItem(CAT, None),), None, None)),
    ],
)
def test_a_prompt_of_one_s_own_is_read(caption, ask):
    assert parse(caption) == ask


@pytest.mark.parametrize(
    ("caption", "why"),
    [
        ("a dragon", "asks for 0 things"),
        ("a frog, a cat and a rocket", "asks for 3 things"),
        ("a frog a cat", "which thing stands where"),
        ("a frog on the left and a cat on the left", "overlap"),
        ("a frog on pink, on a blue background", "2 grounds"),
        ("a frog, Noto style, drawn by Twemoji", "2 artists"),
    ],
)
def test_what_no_scene_shows_is_refused(caption, why):
    with pytest.raises(ValueError, match=why):
        parse(caption)


def test_every_artist_can_be_asked_for():
    assert {parse(f"a frog, {artist} style").artist for artist in ARTISTS} == set(ARTISTS)
