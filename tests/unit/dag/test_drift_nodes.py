"""A retraining whose spec limits drift: the measure, its gate, and the training that waits."""

import pytest
from plan_kit import Promoted

from pipelines.runs.context import Context
from pipelines.steps import drift_gate
from pipelines.store.artifacts import Store


@pytest.fixture
def promoted(tmp_path):
    return Promoted(Store.open(str(tmp_path / "store")))


def more_data(raw, **drift):
    raw["data"]["train"]["rows"] += 64
    if drift:
        raw["retraining"] = {**raw.get("retraining", {}), "drift": drift}


def retraining(promoted, **drift):
    return promoted.plan(lambda raw: more_data(raw, **drift), retrain=True).verdicts


def test_training_waits_for_the_gate_and_stays_the_same(promoted):
    plain, limited = retraining(promoted), retraining(promoted, embeddings=0.1)
    assert limited.keys() - plain.keys() == {"drift/train", "drift_gate/train"}
    for name, verdict in plain.items():
        assert limited[name].fingerprint == verdict.fingerprint
        if name.startswith("train/"):
            waits = {*verdict.node.dependencies, "drift_gate/train"}
            assert set(limited[name].node.dependencies) == waits
    measured = limited["drift/train"].node
    assert measured.inputs == {"data": "embed/train"}
    assert measured.external == {"before": promoted.champion.data("train")}


def test_another_limit_does_not_measure_again(promoted):
    first, second = (retraining(promoted, embeddings=limit) for limit in (0.1, 0.2))
    assert first["drift/train"].fingerprint == second["drift/train"].fingerprint
    assert first["drift_gate/train"].fingerprint != second["drift_gate/train"].fingerprint


DRIFTED = {
    "length/t5": {"value": 0.3, "low": 0.2, "high": 0.4},
    "mmd/clip_image": {"value": 0.05, "low": -0.01, "high": 0.11},
    "quarantined": {"value": 0.02, "low": 0.01, "high": 0.03},
}
NO_LIMIT = {"caption_lengths": None, "embeddings": None, "quarantined": None}


def decide(**limits):
    ctx = Context(
        node="drift_gate/train",
        fingerprint="f",
        store=Store.at("/nowhere"),
        folder="nodes/x",
        cpus=0,
        runtime={},
        manifests={"drift": {"info": {"drifted": DRIFTED}}},
        board=None,
    )
    return drift_gate.step(ctx, {"limits": {**NO_LIMIT, **limits}}, {}).metrics


@pytest.mark.parametrize(
    ("limits", "checked"),
    [
        ({}, 0),
        ({"caption_lengths": 0.2}, 1),
        ({"embeddings": 0.01}, 1),  # its interval reaches below 0
        ({"caption_lengths": 0.25, "embeddings": 0.1, "quarantined": 0.05}, 3),
    ],
)
def test_what_is_not_clearly_beyond_its_limit_passes(limits, checked):
    assert decide(**limits) == {"checked": checked}


def test_the_whole_interval_beyond_the_limit_stops_the_retraining():
    with pytest.raises(ValueError) as error:
        decide(caption_lengths=0.1, embeddings=0.01, quarantined=0.005)
    told = str(error.value)
    assert "t5" in told and "0.3 [0.2, 0.4], above `retraining.drift.caption_lengths: 0.1`" in told
    assert "above `retraining.drift.quarantined: 0.005`" in told and "embeddings" not in told
