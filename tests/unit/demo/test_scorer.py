"""The scorer recognises real images of unseen scenes, and finds nothing where there is nothing."""

import numpy as np
import pytest
import torch

from pipelines.demo.captions import write
from pipelines.demo.classifiers import as_input, as_pictures
from pipelines.demo.drawings import CONCEPTS
from pipelines.demo.scenes import GROUNDS, draw, generator
from pipelines.demo.scorer import (
    NOTHING,
    EmojiScenes,
    grounds,
    without_things,
)
from pipelines.metrics import metric

COUNT = 192


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A scorer as an evaluation opens it, and its own accuracy."""
    folder = tmp_path_factory.mktemp("scorer")
    accuracy = EmojiScenes(images=12_800).fit(
        folder, resolutions=[64], seed=7, progress=lambda done, of: None
    )
    scorer = metric("emoji-scenes", {"images": 12_800})
    scorer.open(folder)
    return scorer, accuracy


@pytest.fixture(scope="module")
def scenes():
    drawn = [draw(7, "validation", 1000 + i) for i in range(COUNT)]
    captions = [
        write(s, generator(7, "validation", 1000 + i, "caption")) for i, (s, _) in enumerate(drawn)
    ]
    return [s for s, _ in drawn], np.stack([p for _, p in drawn]), captions


@pytest.mark.slow
def test_real_pictures_score_high_and_others_captions_low(fitted, scenes):
    scorer, accuracy = fitted
    _, pictures, captions = scenes
    right = {k: float(np.nanmean(v)) for k, v in scorer.score(pictures, captions).items()}
    assert min(right["concepts"], right["pairs"], right["places"]) > 0.9
    assert right["grounds"] == 1
    assert right["styles"] > 0.8
    # Its own accuracy was measured on other scenes of the same kind.
    assert accuracy["concepts_64"] == pytest.approx(right["concepts"], abs=0.1)
    shuffled = captions[7:] + captions[:7]
    wrong = {k: float(np.nanmean(v)) for k, v in scorer.score(pictures, shuffled).items()}
    assert wrong["concepts"] < 0.15
    assert wrong["grounds"] < 0.4


@pytest.mark.slow
def test_places_tell_which_thing_stands_where(fitted, scenes):
    scorer, _ = fitted
    drawn, pictures, _ = scenes
    two = [n for n, scene in enumerate(drawn) if len(scene.items) == 2]
    assert two

    def asked(places):
        return [
            " and ".join(f"{CONCEPTS[i.concept].name} on the {places[i.place]}" for i in items)
            for items in (drawn[n].items for n in two)
        ]

    right = scorer.score(pictures[two], asked({"left": "left", "right": "right"}))
    swapped = scorer.score(pictures[two], asked({"left": "right", "right": "left"}))
    assert right["places"].mean() > 0.9
    assert swapped["places"].mean() < 0.1
    assert (swapped["pairs"] == right["pairs"]).all()


@pytest.mark.slow
def test_an_artist_that_nobody_has_seen_is_harder(fitted):
    _, accuracy = fitted
    assert 5 / len(CONCEPTS) < accuracy["unseen_artist_concepts_64"] < accuracy["concepts_64"]


@pytest.mark.slow
def test_a_bare_ground_holds_nothing(fitted):
    scorer, _ = fitted
    bare = np.broadcast_to(np.uint8(GROUNDS["pink"]), (4, 64, 64, 3))
    reading = scorer.read(bare)
    assert (reading.concepts == NOTHING).all()
    assert (reading.grounds == list(GROUNDS).index("pink")).all()


@pytest.mark.slow
def test_colours_without_their_shape_are_nothing(fitted, scenes):
    """The right colours without the shape must not pass."""
    scorer, _ = fitted
    _, pictures, captions = scenes
    x = without_things(as_input(pictures), torch.Generator().manual_seed(3))
    shuffled = as_pictures(x[: COUNT // 2])
    assert sorted(shuffled[0].ravel()) == sorted(pictures[0].ravel())
    found = scorer.score(shuffled, captions[: COUNT // 2])
    assert np.nanmean(found["concepts"]) < 0.3


@pytest.mark.slow
def test_features_tell_real_pictures_from_noise(fitted, scenes):
    scorer, _ = fitted
    _, pictures, _ = scenes
    features = scorer.features(pictures)
    assert features.shape == (COUNT, 128)
    noise = np.random.default_rng(0).integers(0, 256, (32, 64, 64, 3), dtype=np.uint8)
    distance = np.abs(scorer.features(noise).mean(0) - features.mean(0)).mean()
    halves = np.abs(features[::2].mean(0) - features[1::2].mean(0)).mean()
    assert distance > 5 * halves


def test_a_ground_that_is_no_named_colour_is_none():
    assert grounds(np.full((1, 32, 32, 3), 20, np.uint8)).tolist() == [-1]
    for number, colour in enumerate(GROUNDS.values()):
        for side in (16, 32, 64):
            picture = np.broadcast_to(np.uint8(colour), (1, side, side, 3)).copy()
            picture[:, side // 4 : -side // 4, side // 4 : -side // 4] = 0
            assert grounds(picture).tolist() == [number]


def test_options_and_sides_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 64"):
        metric("emoji-scenes", {"images": 3})
    with pytest.raises(ValueError, match="emoji-scenes"):
        metric("emoji-scenes", {"pictures": 3})
    with pytest.raises(ValueError, match="not installed; there are emoji-scenes"):
        metric("emoji", {})
    with pytest.raises(ValueError, match="not 24"):
        EmojiScenes().fit(tmp_path, resolutions=[24], seed=0, progress=lambda done, of: None)
