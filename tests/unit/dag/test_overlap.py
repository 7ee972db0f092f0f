"""What noise an expert is planned to train on: overlap with its neighbours, and loss weights."""

import pytest
from plan_kit import Promoted, spec
from pydantic import ValidationError

from pipelines.dag import plan
from pipelines.reports import plan as shown
from pipelines.store.artifacts import Store


@pytest.fixture
def store(tmp_path):
    return Store.open(str(tmp_path / "store"))


def overlapping(name, share=0.2):
    def change(raw):
        base = raw["stages"]["base"]
        (base if name == "single" else base["experts"])[name]["overlap"] = share

    return change


def test_overlap_is_a_density_and_changes_that_expert_alone(store):
    before = plan.make(spec(), store, {}).verdicts
    made = plan.make(spec(overlapping("E1_1")), store, {})
    node = made.verdicts["train/base/E1_1"].node
    assert node.settings["interval"] == [0.5, 1.0]
    assert node.settings["density"] == [[0.0, 0.5, 0.2], [0.5, 1.0, 0.8]]
    for name, verdict in made.verdicts.items():
        if verdict.node.kind == "train" and name.startswith("train/base/"):
            changed = verdict.fingerprint != before[name].fingerprint
            assert changed == (name == "train/base/E1_1"), name
    zero = plan.make(spec(overlapping("E1_1", 0.0)), store, {}).verdicts
    assert {i: v.fingerprint for i, v in zero.items()} == {
        i: v.fingerprint for i, v in before.items()
    }
    assert "20 % outside" in shown.text(made)
    rows = {row["id"]: row for row in shown.data(made)["nodes"]}
    assert rows["train/base/E1_1"]["density"] == node.settings["density"]
    assert "density" not in rows["train/base/E1_0"]


@pytest.mark.parametrize("name", ["E0_0", "single"])
def test_nothing_is_outside_the_root_and_the_single_model(name):
    with pytest.raises(ValidationError, match=f"{name} trains on all of p"):
        spec(overlapping(name))


def test_a_retraining_keeps_the_overlap(store):
    made = Promoted(store, overlapping("E1_1")).plan(overlapping("E1_1"), retrain=True)
    nodes = {i: v.node for i, v in made.verdicts.items() if v.node.kind == "train"}
    assert nodes["train/base/E1_1"].settings["density"][0] == [0.0, 0.5, 0.2]
    assert "density" not in nodes["train/base/E1_0"].settings


def test_a_loss_weight_trains_the_stage_anew_and_is_shown(store):
    def weighted(raw):
        raw["stages"]["base"]["training"]["loss_weight"] = "min_snr"

    before, made = plan.make(spec(), store, {}), plan.make(spec(weighted), store, {})
    changed = {
        i
        for i, v in made.verdicts.items()
        if v.node.kind == "train" and v.fingerprint != before.verdicts[i].fingerprint
    }
    experts = ("E0_0", "E1_1", "E1_0", "single")
    assert changed == {f"train/base/{name}" for name in experts}
    assert shown.text(made).count("min_snr") == 4 and "min_snr" not in shown.text(before)
    rows = {row["id"]: row for row in shown.data(made)["nodes"]}
    assert rows["train/base/single"]["loss_weight"] == "min_snr"
    assert "loss_weight" not in rows["train/sr32/E0_0"]
