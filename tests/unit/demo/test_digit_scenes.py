"""DigitScenes are reproducible, their splits are disjoint, and their digits never touch."""

from itertools import combinations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pipelines.demo.scenes import INKS, LAYOUTS, PAPERS, SPLITS, draw, source_digits


def test_a_scene_depends_on_its_arguments_alone():
    first = [draw(3, "train", index) for index in (5, 6)]
    again = [draw(3, "train", index) for index in (6, 5)][::-1]
    for (scene, picture), (same_scene, same_picture) in zip(first, again, strict=True):
        assert scene == same_scene
        np.testing.assert_array_equal(picture, same_picture)
    others = [draw(4, "train", 5), draw(3, "validation", 5), draw(3, "train", 6)]
    assert all((picture != first[0][1]).any() for _, picture in others)


def test_splits_partition_the_scans_and_agree_with_their_labels():
    labels = load_digits().target
    owned = {split: source_digits(split) for split in SPLITS}
    everything = [scan for part in owned.values() for scans in part.values() for scan in scans]
    assert sorted(everything) == list(range(len(labels)))
    for split, share in SPLITS.items():
        for digit, scans in owned[split].items():
            assert set(labels[list(scans)]) == {digit}
            assert len(scans) == pytest.approx(share * (labels == digit).sum(), abs=1)


def test_every_choice_is_drawn_equally_often():
    scenes = [draw(0, "train", index)[0] for index in range(3000)]
    items = [item for scene in scenes for item in scene.items]
    for values, kinds in [
        ([len(scene.items) for scene in scenes], 3),
        ([scene.paper for scene in scenes], len(PAPERS)),
        ([item.ink for item in items], len(INKS)),
        ([item.digit for item in items], 10),
    ]:
        _, counts = np.unique(values, return_counts=True)
        assert len(counts) == kinds
        assert abs(counts / len(values) * kinds - 1).max() < 0.15
    assert {tuple(item.place for item in scene.items) for scene in scenes} == {
        layout for layouts in LAYOUTS.values() for layout in layouts
    }


def test_digits_never_touch():
    """The pixels of a place, over many scenes with one digit, are free of every neighbour."""
    reach: dict[str, np.ndarray] = {}
    for index in range(3000):
        scene, picture = draw(1, "train", index)
        if len(scene.items) == 1:
            inked = (picture != PAPERS[scene.paper]).any(-1)
            assert inked.sum() > 60
            place = scene.items[0].place
            reach[place] = reach.get(place, False) | inked
    for layouts in LAYOUTS.values():
        for layout in layouts:
            for one, other in combinations(layout, 2):
                assert not (reach[one] & reach[other]).any(), (one, other)


def test_colours_stay_apart():
    """Even a half-and-half mixture with the paper is no other ink, and no ink is like a paper."""
    inks, papers = np.array(list(INKS.values())), np.array(list(PAPERS.values()))
    for paper in papers:
        directions = (inks - paper) / np.linalg.norm(inks - paper, axis=1, keepdims=True)
        cosines = directions @ directions.T
        assert np.linalg.norm(inks - paper, axis=1).min() > 120
        assert np.degrees(np.arccos(cosines[~np.eye(len(inks), dtype=bool)].max())) > 10


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [((0, "test", 0), "train, validation, scorer"), ((0, "train", -1), "0 or more")],
)
def test_wrong_arguments_are_explained(arguments, remedy):
    with pytest.raises(ValueError, match=remedy):
        draw(*arguments)
