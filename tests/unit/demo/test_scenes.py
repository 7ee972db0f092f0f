"""EmojiScenes are reproducible, and training never shows the pairs held out for validation."""

from itertools import combinations, product

import numpy as np
import pytest

from pipelines.demo.drawings import ARTISTS, CONCEPTS, HELD_OUT_ARTIST, drawing, indices
from pipelines.demo.scenes import (
    GROUNDS,
    PAIRED,
    PLACES,
    Item,
    Scene,
    compose,
    draw,
    generator,
    held_out_ground,
    held_out_pair,
    is_trained,
    paint,
)

CAT = next(n for n, concept in enumerate(CONCEPTS) if concept.name == "cat")


def test_a_scene_depends_on_its_arguments_alone():
    first = [draw(3, "train", index) for index in (5, 6)]
    again = [draw(3, "train", index) for index in (6, 5)][::-1]
    for (scene, picture), (same_scene, same_picture) in zip(first, again, strict=True):
        assert scene == same_scene
        np.testing.assert_array_equal(picture, same_picture)
    others = [draw(4, "train", 5), draw(3, "validation", 5), draw(3, "train", 6)]
    assert all((picture != first[0][1]).any() for _, picture in others)


def test_training_never_shows_what_every_scene_of_validation_has():
    for index in range(2000):
        for split, shown in (("train", True), ("validation", False)):
            scene = compose(0, split, index)
            assert is_trained(scene.items, scene.ground) is shown
    trained = {
        (item.concept, scene.ground)
        for scene in (compose(0, "train", i) for i in range(6000))
        for item in scene.items
    }
    held_out = {(c, held_out_ground(c)) for c in range(len(CONCEPTS))}
    everything = set(product(range(len(CONCEPTS)), GROUNDS))
    assert trained == everything - held_out


def test_every_concept_is_trained_in_the_centre_and_paired_ones_on_both_sides():
    seen = {
        (item.concept, item.place)
        for scene in (compose(1, "train", i) for i in range(6000))
        for item in scene.items
    }
    for concept in range(len(CONCEPTS)):
        places = PLACES if concept in PAIRED else ("centre",)
        assert {place for c, place in seen if c == concept} == set(places)


def test_training_never_shows_some_concepts_side_by_side_and_validation_does():
    pairs = {
        split: {
            frozenset(item.concept for item in scene.items)
            for scene in (compose(1, split, i) for i in range(6000))
            if len(scene.items) == 2
        }
        for split in ("train", "validation")
    }
    held_out = {frozenset(two) for two in combinations(PAIRED, 2) if held_out_pair(*two)}
    assert len(held_out) == 6
    assert held_out_pair(CAT, PAIRED[0])  # what is shown alone is never shown beside another
    everything = {frozenset(two) for two in combinations(PAIRED, 2)}
    assert pairs == {"train": everything - held_out, "validation": everything}
    for concept in PAIRED:
        assert sum(concept in two for two in held_out) <= 2


def test_only_the_chosen_concepts_are_drawn_by_every_split():
    chosen = indices(["rocket", "cat", "frog"])
    assert chosen == (PAIRED[0], CAT, PAIRED[2])
    for split in ("train", "validation", "scorer"):
        scenes = [compose(0, split, i, chosen) for i in range(300)]
        assert {item.concept for s in scenes for item in s.items} == set(chosen)
    alone = [compose(0, split, i, [CAT]) for split in ("train", "validation") for i in range(50)]
    assert {s.items for s in alone} == {(Item(CAT, "centre"),)}


@pytest.mark.parametrize(
    ("names", "why"),
    [(["frgo"], "did you mean 'frog'"), ([], "at least one"), (["cat", "cat"], "each once")],
)
def test_concepts_that_cannot_be_chosen_are_refused(names, why):
    with pytest.raises(ValueError, match=why):
        indices(names)


def test_every_choice_is_drawn_equally_often():
    scenes = [compose(0, "scorer", index) for index in range(6000)]
    for values, kinds in [
        ([scene.ground for scene in scenes], len(GROUNDS)),
        ([scene.artist for scene in scenes], len(ARTISTS)),
        ([item.concept for scene in scenes for item in scene.items], len(CONCEPTS)),
    ]:
        _, counts = np.unique(values, return_counts=True)
        assert len(counts) == kinds
        assert abs(counts / len(values) * kinds - 1).max() < 0.25


def test_unseen_words_are_asked_for_in_validation_alone():
    assert not any(compose(0, "train", i).unseen for i in range(1000))
    asked = [compose(0, "validation", i) for i in range(1000)]
    assert 20 < sum(s.unseen for s in asked) < 150
    assert all(CONCEPTS[s.items[0].concept].unseen for s in asked if s.unseen)


@pytest.mark.parametrize("package", [*ARTISTS.values(), HELD_OUT_ARTIST[1]])
def test_every_artist_has_drawn_every_concept(package):
    for concept in range(len(CONCEPTS)):
        rgba = drawing(concept, package)
        assert max(rgba.shape[:2]) > 60
        assert 0.1 < rgba[..., 3].mean() <= 1
        assert (rgba[..., :3] <= rgba[..., 3:] + 1e-6).all()  # colour times alpha


def test_two_things_stand_in_their_halves_and_leave_the_ground_bare_between_and_around():
    ground = np.array(GROUNDS["blue"])
    for index, concept in enumerate(range(0, len(CONCEPTS), 3)):
        items = (Item(concept, "left"), Item((concept + 1) % len(CONCEPTS), "right"))
        scene = Scene(items, "blue", "Noto")
        picture = paint(scene, ARTISTS["Noto"], generator(0, "train", index, "picture"))
        is_bare = (picture == ground).all(axis=2)
        assert is_bare[:12].all()
        assert is_bare[-12:].all()
        for half in (is_bare[:, :32], is_bare[:, 32:]):
            assert (~half).sum() > 60
        corners = is_bare[:10, :10] & is_bare[-10:, -10:]
        assert corners.all()


@pytest.mark.parametrize("arguments", [(0, "test", 0), (-1, "train", 0), (0, "train", -1)])
def test_what_cannot_be_drawn_is_refused(arguments):
    with pytest.raises(ValueError, match=r"split|0 or more"):
        draw(*arguments)
