"""Scores per picture: stored, summarized with an interval, and compared in pairs."""

import math

import pytest
import torch

from pipelines.evaluation import losses, scores
from pipelines.runs.context import Context
from pipelines.steps import compare
from pipelines.store.artifacts import Store

NAN = math.nan


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def store(tmp_path):
    return Store.open(str(tmp_path))


def test_what_is_written_is_read_back_and_nothing_asked_stays_nothing(store):
    found = {"concepts": tensor(1, NAN, 0), "val_loss": tensor(0.25, 0.5, 0.125)}
    scores.write(store, "x", found)
    again = scores.read(store, "x")
    assert again.keys() == found.keys()
    for name in found:
        torch.testing.assert_close(again[name], found[name], equal_nan=True)
    with pytest.raises(ValueError, match="has lost its scores"):
        scores.read(store, "y")


def test_a_mean_is_of_what_was_asked_and_has_its_interval():
    found = scores.summary(
        {"concepts": tensor(1, NAN, 0, 1, 1), "pairs": tensor(NAN, NAN)}, "real/"
    )
    assert found.keys() == {"real/concepts", "real/concepts_ci95", "real/concepts_pictures"}
    assert found["real/concepts"] == 0.75 and found["real/concepts_pictures"] == 4
    spread = tensor(1, 0, 1, 1).std().item()
    assert found["real/concepts_ci95"] == pytest.approx(3.182 * spread / 2, rel=0.01)


def test_a_loss_that_is_no_number_is_not_left_out():
    assert math.isnan(scores.summary({"val_loss": tensor(0.1, NAN)})["val_loss"])
    gained = scores.gain({"val_loss": tensor(0.1, NAN)}, {"val_loss": tensor(0.2, 0.2)}, "val_loss")
    assert math.isnan(gained.mean)


@pytest.mark.parametrize("measure", ["val_loss", "kernel_distance", "concepts"])
def test_a_gain_above_nothing_is_better_whatever_the_measure(measure):
    low, high = {measure: tensor(0.1, 0.2, 0.3)}, {measure: tensor(0.2, 0.35, 0.4)}
    better, worse = (low, high) if measure in scores.LOWER_IS_BETTER else (high, low)
    assert scores.gain(better, worse, measure).low > 0
    assert scores.gain(worse, better, measure).high < 0


def test_other_captions_are_not_compared():
    a, b = {"concepts": tensor(1, NAN)}, {"concepts": tensor(NAN, 1)}
    with pytest.raises(ValueError, match="other captions"):
        scores.gain(a, b, "concepts")
    with pytest.raises(ValueError, match="same draws"):
        scores.gain(a, {"concepts": tensor(1, NAN, 1)}, "concepts")


HOW = {"cut": {}, "noise": {}, "experts": {"E0_0": [0.0, 1.0]}, "sigma_data": 0.5}


def keep(store, folder, how):
    losses.Losses(
        how=how,
        experts={"E0_0": (0.0, math.inf)},
        picture=torch.arange(3),
        sigma=tensor(0.1, 0.2, 0.3),
        loss=tensor(0.1, NAN, 0.3),
    ).write(store, folder)


def test_losses_come_back_as_they_were(store):
    keep(store, "x", HOW)
    found = losses.read(store, "x")
    assert found.how == HOW and found.experts == {"E0_0": (0.0, math.inf)}
    torch.testing.assert_close(found.loss, tensor(0.1, NAN, 0.3), equal_nan=True)
    assert found.picture.dtype == torch.int64 and found.sigma.dtype == torch.float64
    with pytest.raises(ValueError, match="has lost its losses"):
        losses.read(store, "y")


def test_parts_of_a_loss_are_better_when_lower():
    low, high = {"val_loss/E1_1": tensor(0.1, 0.2)}, {"val_loss/E1_1": tensor(0.4, 0.52)}
    assert scores.gain(low, high, "val_loss/E1_1").mean > 0
    assert math.isnan(scores.summary({"val_loss/E1_1": tensor(0.1, NAN)})["val_loss/E1_1"])


def test_an_ensemble_is_compared_with_the_single_model(store):
    scores.write(store, "e", {"val_loss": tensor(0.1, 0.2, 0.3), "pairs": tensor(NAN, NAN, 1)})
    scores.write(store, "s", {"val_loss": tensor(0.31, 0.4, 0.51), "pairs": tensor(NAN, NAN, 0)})
    keep(store, "e", HOW)
    keep(store, "s", HOW)
    ctx = Context(
        node="compare/base",
        fingerprint="f",
        store=store,
        folder="c",
        cpus=1,
        runtime={},
        manifests={},
        board=None,
    )
    found = compare.step(ctx, {}, {"ensemble": "e", "single": "s"}).metrics
    parts = ("", "_low", "_high", "_pictures")
    assert found.keys() == {f"gain/val_loss{part}" for part in parts}
    assert found["gain/val_loss_pictures"] == 3
    assert found["gain/val_loss"] == pytest.approx(0.62 / 3)
    keep(store, "s", {**HOW, "sigma_data": 0.6})
    with pytest.raises(ValueError, match=r"measured differently: sigma_data: 0.6 → 0.5"):
        compare.step(ctx, {}, {"ensemble": "e", "single": "s"})
    assert 0 < found["gain/val_loss_low"] < found["gain/val_loss"] < found["gain/val_loss_high"]
