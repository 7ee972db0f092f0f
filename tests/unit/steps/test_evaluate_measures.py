"""Measures of an evaluation that use CLIP, and when the CLIP score is not reported."""

import numpy as np
import pytest
import torch

from pipelines.runs.context import Context
from pipelines.steps.evaluate import (
    FRECHET_PICTURES_PER_FEATURE,
    Measures,
    drop_inflated_clip_score,
)
from pipelines.store.artifacts import Store


class ByColour:
    """A CLIP of three features: a picture's mean colour, and the colour that a caption names."""

    def __init__(self):
        self.looked = 0

    def image(self, pictures):
        self.looked += 1
        return torch.from_numpy(np.stack([np.asarray(p).mean((0, 1)) for p in pictures]))

    def text(self, captions):
        named = {"red": (255, 0, 0), "green": (0, 255, 0)}
        return [], torch.tensor([named[c] for c in captions], dtype=torch.float32)


@pytest.fixture
def measures():
    found = Measures.__new__(Measures)
    found.metrics, found.clip = [], ByColour()
    return found


@pytest.fixture
def ctx(tmp_path):
    store = Store.open(str(tmp_path))
    return Context(
        node="evaluate/base/ensemble",
        fingerprint="f",
        store=store,
        folder="e",
        cpus=1,
        runtime={},
        manifests={},
        board=None,
    )


def pictures(count, seed, red=200):
    """Mostly red ones, with grain."""
    grain = np.random.default_rng(seed).integers(0, 50, (count, 4, 4, 3), dtype=np.uint8)
    return grain + np.uint8([red, 0, 0])


def test_pictures_are_likened_to_their_captions_one_by_one(measures):
    real, made = pictures(8, 0), pictures(8, 1, red=60)
    found = measures.reference_scores(made, real, ["red", "green"] * 4)
    assert found.keys() == {"kernel_distance", "clip_score"}
    text_alignment = found["clip_score"]
    assert text_alignment.shape == (8,) and text_alignment[::2].min() > text_alignment[1::2].max()
    assert float(measures.text_alignment(real, ["red"] * 8)["clip_score"].min()) > 0.95
    looked = measures.clip.looked
    measures.reference_scores(made, real, ["red"] * 8)
    assert measures.clip.looked == looked  # each set is looked at once


def test_a_score_above_that_of_real_pictures_is_not_kept(measures, ctx):
    real, made = pictures(8, 0, red=60), pictures(8, 1)
    captions = ["red"] * 8
    for of, other, kept in ((made, real, False), (real, made, True)):
        scores = measures.text_alignment(of, captions) | {"val_loss": torch.zeros(2)}
        drop_inflated_clip_score(ctx, scores, measures.text_alignment(other, captions))
        assert ("clip_score" in scores) is kept and "val_loss" in scores


def test_a_frechet_distance_needs_many_pictures(measures):
    few, enough = 3 * FRECHET_PICTURES_PER_FEATURE - 1, 3 * FRECHET_PICTURES_PER_FEATURE
    assert measures.distances(pictures(few, 0), pictures(few, 1)) == {}
    found = measures.distances(pictures(enough, 0), pictures(enough, 1))
    assert found["frechet_distance_pictures"] == enough and found["frechet_distance"] >= 0
