"""The scorer agrees with real scenes, and with nothing else."""

import numpy as np
import pytest

from pipelines.demo.captions import write
from pipelines.demo.scenes import INKS, PAPERS, PLACES, draw
from pipelines.demo.scorer import NOTHING, Scorer, downsample


@pytest.fixture(scope="module")
def validation():
    drawn = [draw(0, "validation", index) for index in range(400)]
    rng = np.random.default_rng(0)
    captions = [write(scene, rng) for scene, _ in drawn]
    return np.stack([picture for _, picture in drawn]), captions


@pytest.fixture(scope="module")
def scorer():
    return Scorer.fit(16)


def test_real_scenes_score_high(scorer, validation):
    pictures, captions = validation
    alignment = scorer.score(downsample(pictures, 16), captions)
    assert alignment.objects > 0.92  # 0.961 over 1,500 scenes
    assert alignment.colours > 0.98
    assert alignment.places > 0.98
    assert alignment.papers > 0.98


def test_full_resolution_reads_as_well(validation):
    pictures, captions = validation
    assert Scorer.fit(64).score(pictures, captions).overall > 0.96


def test_shuffled_captions_score_low(scorer, validation):
    pictures, captions = validation
    alignment = scorer.score(downsample(pictures, 16), captions[1:] + captions[:1])
    assert alignment.objects < 0.12
    assert alignment.colours < 0.2
    assert alignment.places < 0.5
    assert alignment.papers < 0.4


def test_noise_and_empty_paper_hold_no_digits(scorer, validation):
    captions = validation[-1]
    noise = np.random.default_rng(0).integers(0, 256, (len(captions), 16, 16, 3), dtype=np.uint8)
    assert scorer.score(noise, captions).overall < 0.05
    for paper in PAPERS.values():
        sheet = np.broadcast_to(np.array(paper, np.uint8), (1, 16, 16, 3))
        assert (scorer.read(sheet).digits == NOTHING).all()


def test_blur_and_grain_cost_little(scorer, validation):
    pictures, captions = validation
    small = downsample(pictures, 16)
    grain = np.random.default_rng(0).normal(0, 12, small.shape)
    grainy = np.clip(small + grain, 0, 255).astype(np.uint8)
    sharp = scorer.score(small, captions).overall
    assert scorer.score(grainy, captions).overall > sharp - 0.03


def test_each_number_measures_what_it_says(scorer):
    """One clean scene, and captions that are wrong in one way each."""
    scene, picture = next(
        (scene, picture)
        for scene, picture in (draw(0, "validation", index) for index in range(500))
        if len(scene.items) == 1 and scene.items[0].digit == 4 and scene.paper == "white"
    )
    item, image = scene.items[0], downsample(picture[None], 16)
    reading = scorer.read(image)
    at = list(PLACES).index(item.place)
    assert reading.digits[0].tolist() == [4 if p == at else NOTHING for p in range(len(PLACES))]
    assert list(INKS)[reading.inks[0, at]] == item.ink
    assert list(PAPERS)[reading.papers[0]] == "white"
    ink = "red" if item.ink != "red" else "blue"
    place = "left" if item.place != "left" else "right"

    def row(caption: str) -> list[float]:
        return scorer.score(image, [caption]).per_image[0].tolist()

    assert row(f"a {item.ink} four") == [1, 1, 1]
    assert row(f"a {item.ink} four in the {item.place}") == [1, 1, 1]
    assert row(f"a {item.ink} nine in the {item.place}") == [0, 1, 1]
    assert row(f"a {ink} four in the {item.place}") == [1, 0, 1]
    assert row(f"a {item.ink} four in the {place}") == [0, 0, 0]
    assert row(f"a {item.ink} nine and a {item.ink} four") == [0.5, 0.5, 0.5]
    assert scorer.score(image, ["a red one on white paper"]).papers == 1
    assert scorer.score(image, ["a red one on grey paper"]).papers == 0
    assert np.isnan(scorer.score(image, ["a red one"]).papers)


def test_means_follow_from_the_rows(scorer, validation):
    pictures, captions = validation
    alignment = scorer.score(downsample(pictures[:50], 16), captions[:50])
    weighted = alignment.per_item @ alignment.per_image[:, :2] / alignment.per_item.sum()
    np.testing.assert_allclose(weighted, [alignment.objects, alignment.colours])
    assert alignment.places == pytest.approx(alignment.per_image[:, 2].mean())


def test_wrong_pictures_are_explained(scorer):
    with pytest.raises(ValueError, match="16, 32 or 64"):
        Scorer.fit(20)
    with pytest.raises(ValueError, match="fit a scorer for their resolution"):
        scorer.read(np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="convert"):
        scorer.read(np.zeros((1, 16, 16, 3), np.float32))
    with pytest.raises(ValueError, match="one caption for each picture"):
        scorer.score(np.zeros((2, 16, 16, 3), np.uint8), ["a red one"])
    with pytest.raises(ValueError, match="divisor"):
        downsample(np.zeros((1, 64, 64, 3), np.uint8), 20)
