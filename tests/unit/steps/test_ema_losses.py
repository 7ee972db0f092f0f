"""Losses by the length of the average are those of the ensemble that would draw with it."""

import pytest
import torch
from snapshot_kit import CONFIG, read_json, write_ensemble, write_expert, write_validation

from ediffi_core.metrics import Estimate, by_picture, paired_gain
from pipelines.evaluation import losses as eval_losses
from pipelines.models.stages import load_ensemble, slots_of
from pipelines.steps import ema_losses
from pipelines.store.artifacts import Store
from pipelines.store.reader import Reader
from pipelines.training.validation import validation_batch

LENGTHS = [0.05, 0.15]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with an ensemble, and its manifest."""
    store = Store.at(str(tmp_path_factory.mktemp("store")))
    folder = write_validation(store)
    return store, read_json(write_ensemble(store, CONFIG, validation=folder, drift=0.02))


@pytest.fixture(scope="module")
def found(made):
    return ema_losses.measure(*made, "base", LENGTHS, draws=30)


def test_they_are_those_of_the_whole_ensemble_on_the_same_draws(made, found):
    store, manifest = made
    slots = slots_of(manifest["stages"][0], manifest["weights"])
    reader = Reader(store, manifest["data"]["validation"]["folder"], 8)
    noise = {"P_mean": -1.2, "P_std": 1.2}
    how = {"draws": 30, "experts": manifest["stages"][0]["experts"], "cut": noise, "noise": noise}
    how |= {"sigma_data": 0.5, "seed": 0}

    def batches(index):
        x, cond = validation_batch(reader, index, how)
        cond.pooled["clip_image"].zero_()
        return x, cond

    measured = {
        length: eval_losses.measure(
            load_ensemble(store, slots, ema_length=length),
            batches,
            how,
            pictures=len(reader),
            batch=7,
        )
        for length in (None, *LENGTHS)
    }
    stored = measured[None]
    assert list(found.rows) == ["E1_1", "E1_0"] and found.pictures == 12
    strata = eval_losses.strata_of(how)
    weight = strata.weights(stored.sigma, strata.noise)
    for name in (*found.rows, "all"):
        mine = stored.inside(stored.expert_bounds.get(name, (0, float("inf"))))
        values = {
            length: by_picture(losses.loss[mine], losses.picture[mine], weight[mine])
            for length, losses in measured.items()
        }
        for row in found.rows.get(name, found.overall):
            loss, gain = Estimate.of(values[row.length]), row.gain
            assert row.loss.mean == pytest.approx(loss.mean, rel=1e-5)
            assert row.loss.high == pytest.approx(loss.high, rel=1e-5)
            if row.length is not None:
                paired = paired_gain(values[None], values[row.length], comparisons=2)
                assert gain.mean == pytest.approx(paired.mean, abs=1e-6)
                assert gain.low == pytest.approx(paired.low, abs=1e-5)


def test_the_whole_is_the_mean_of_equal_halves(found):
    for high, low, both in zip(*found.rows.values(), found.overall, strict=True):
        halves = (high.loss.mean + low.loss.mean) / 2
        assert both.loss.mean == pytest.approx(halves, rel=0.1)  # weights are normalised together


def test_a_length_that_is_stored_has_no_error_and_others_have(found):
    for rows in (*found.rows.values(), found.overall):
        errors = {row.length: row.error for row in rows}
        assert errors[0.05] < 1e-6 and errors[0.15] > 0.01


def test_the_best_has_the_lowest_loss(found):
    data = found.data()
    for part in (*data["experts"].values(), data["overall"]):
        losses = {row["length"]: row["loss"] for row in part["rows"]}
        assert list(losses) == [None, *LENGTHS]
        assert losses[part["best"]] == min(losses.values())


def test_weights_that_stand_still_gain_nothing(tmp_path):
    store = Store.at(str(tmp_path))
    folder = write_validation(store)
    manifest = read_json(write_ensemble(store, CONFIG, validation=folder, drift=0.0))
    rows = ema_losses.measure(store, manifest, "base", [0.2], draws=12).overall
    assert abs(rows[1].gain.mean) < 1e-5 * rows[0].loss.mean


def test_an_expert_without_snapshots_is_named_before_anything_is_measured(tmp_path):
    store = Store.at(str(tmp_path))
    manifest = read_json(write_ensemble(store, CONFIG, validation="gone"))
    write_expert(store, CONFIG, "E1_1", every=None)
    with pytest.raises(ValueError, match="base/E1_1 was trained without snapshots"):
        ema_losses.measure(store, manifest, "base", [0.1], draws=12)
    del manifest["data"]
    write_expert(store, CONFIG, "E1_1")
    with pytest.raises(ValueError, match="older format; run its pipeline again"):
        ema_losses.measure(store, manifest, "base", [0.1], draws=12)


def test_a_loss_that_is_not_finite_is_none_and_never_the_best():
    def row(length, mean):
        values = torch.tensor([mean, mean])
        return ema_losses.Row(length=length, loss=Estimate.of(values), gain=None, error=0.0)

    rows = [row(None, 2.0), row(0.1, float("nan"))]
    assert ema_losses.best(rows).length is None
    assert rows[1].data()["loss"] is None
