"""Which experts an ensemble adopts, and which of two ensembles is better."""

import json

import pytest
import torch

from pipelines.evaluation.losses import Losses, strata_of
from pipelines.runs.context import Context
from pipelines.spec.promotion import Promotion
from pipelines.steps import adopt, gate
from pipelines.store.artifacts import Store


def trained(gain=None, low=None):
    metrics = {"val_loss": 0.1}
    if gain is not None:
        metrics |= {"val_gain": gain, "val_gain_low": low, "val_gain_high": 2 * gain - low}
    return {"metrics": metrics, "info": {}}


def context(tmp_path, manifests):
    return Context(
        node="adopt/base",
        fingerprint="f",
        store=Store.at(str(tmp_path)),
        folder="nodes/x",
        cpus=0,
        runtime={},
        manifests=manifests,
        board=None,
    )


EXPERTS = {
    "base/E0_0": trained(),
    "base/E1_1": trained(0.01, 0.005),
    "base/E2_3": trained(0.01, -0.001),
    "base/M_C": trained(-0.01, -0.02),
    "base/E1_0": trained(0.02, 0.001),
}
LINES = {
    "E2_3": ["base/E2_3", "base/E1_1", "base/E0_0"],
    "M_C": ["base/M_C", "base/E0_0"],
    "E1_0": ["base/E1_0", "base/E0_0"],
}


def test_a_slot_goes_to_the_nearest_expert_that_beat_its_parent(tmp_path):
    found = adopt.step(context(tmp_path, EXPERTS), {"rule": "better", "seats": LINES}, {})
    assert found.info["seats"] == {"E2_3": "base/E1_1", "M_C": "base/E0_0", "E1_0": "base/E1_0"}
    assert found.info["refused"] == {
        "base/E2_3": "its gain over its parent is +0.0100 [-0.0010, +0.0210]",
        "base/M_C": "its gain over its parent is -0.0100 [-0.0200, +0.0000]",
    }
    assert found.metrics == {"adopted": 1, "refused": 2}


def test_all_are_adopted_where_the_spec_says_so(tmp_path):
    found = adopt.step(context(tmp_path, EXPERTS), {"rule": "always", "seats": LINES}, {})
    assert found.info["seats"] == {slot: line[0] for slot, line in LINES.items()}
    assert found.info["refused"] == {}


def test_if_all_candidates_fail_the_slot_goes_to_the_root(tmp_path):
    experts = {**EXPERTS, "base/E1_1": trained(0.0, -0.01)}
    found = adopt.step(context(tmp_path, experts), {"rule": "better", "seats": LINES}, {})
    assert found.info["seats"]["E2_3"] == "base/E0_0"
    assert set(found.info["refused"]) == {"base/E2_3", "base/E1_1", "base/M_C"}


HOW = {
    "draws": 64,
    "experts": {"E0_0": [0.0, 1.0]},
    "cut": {"P_mean": -1.2, "P_std": 1.2},
    "noise": {"P_mean": -1.2, "P_std": 1.2},
    "sigma_data": 0.5,
    "seed": 0,
}


class Two:
    """An ensemble and a champion, measured on two stages."""

    def __init__(self, root):
        self.root, self.inputs, self.manifests = root, {"candidate": "nodes/promote"}, {}
        self.manifests["candidate"] = {"metrics": {}, "info": {}}

    def measured(self, role, losses, how=HOW, **others):
        folder = f"nodes/evaluate/{role}"
        (self.root / folder).mkdir(parents=True)
        found = {"val_loss": losses, **others}
        (self.root / folder / "scores.json").write_text(json.dumps(found))
        index, sigma = strata_of(how).draw(64, pictures=64, seed=0)
        Losses(
            how=how,
            experts={"E0_0": (0.0, float("inf"))},
            picture=index,
            sigma=sigma,
            loss=torch.tensor(losses, dtype=torch.float64),
        ).write(Store.at(str(self.root)), folder)
        self.inputs[role] = folder
        means = {k: sum(x for x in v if x is not None) / len(v) for k, v in found.items()}
        self.manifests[role] = {"metrics": means, "info": {}}

    def decide(self, **rule):
        settings = {"rule": {"metric": "val_loss", "margin": 0.0, **rule}, "champion": "c" * 16}
        found = gate.step(context(self.root, self.manifests), settings, self.inputs)
        written = (self.root / "nodes/x/decision.json").read_text()
        assert json.loads(written, parse_constant=pytest.fail) == found.info
        return found.info


@pytest.fixture
def two(tmp_path):
    return Two(tmp_path)


def losses(better=0.0):
    return [0.1 + 0.01 * (i % 7) - better * (1 + 0.1 * (i % 3)) for i in range(64)]


def test_better_on_one_stage_and_no_worse_on_the_other_wins(two):
    for stage, gain in (("base", 0.01), ("sr", 0.0)):
        two.measured(f"ensemble/{stage}", losses(gain))
        two.measured(f"champion/{stage}", losses())
    found = two.decide()
    assert found["wins"]
    assert found["why"].startswith("val_loss of base is better than the champion's: 0.1")
    assert found["why"].endswith("64 draws of 64 pictures)")
    of = ("", " over the sampler's steps", " in the interval of E0_0 (all σ)")
    on = [f"{stage}{where}" for stage in ("base", "sr") for where in of]
    assert [row["on"] for row in found["compared"]] == on
    assert found["compared"][2]["gain"] == pytest.approx(0.011, abs=2e-4)
    assert [row["metric"] for row in found["compared"]][:3] == [
        "gain/base",
        "gain/base/sampler",
        "gain/base/E0_0",
    ]


def test_the_same_is_no_better(two):
    two.measured("ensemble/base", losses())
    two.measured("champion/base", losses())
    found = two.decide()
    assert not found["wins"] and "is no better than the champion's" in found["why"]


def test_worse_on_the_champions_own_data_loses(two):
    for role, gain in (("", 0.01), ("-before", -0.005)):
        two.measured(f"ensemble{role}/base", losses(gain))
        two.measured(f"champion{role}/base", losses())
    found = two.decide()
    assert not found["wins"]
    assert found["why"].startswith("val_loss of base on the champion's data is worse than")


def test_a_gain_within_the_margin_is_none(two):
    two.measured("ensemble/base", losses(0.01))
    two.measured("champion/base", losses())
    assert not two.decide(margin=0.2)["wins"] and two.decide(margin=0.01)["wins"]


@pytest.mark.parametrize(
    ("metric", "by", "wins"),
    [
        ("concepts", 0.1, True),
        ("concepts", -0.1, False),
        ("kernel_distance", -0.1, True),
        ("kernel_distance", 0.1, False),
    ],
)
def test_other_metrics_have_their_own_direction(two, metric, by, wins):
    theirs = [0.5 + 0.1 * (i % 4) for i in range(64)]
    mine = [v + by * (1 + 0.1 * (i % 3)) for i, v in enumerate(theirs)]
    two.measured("ensemble/base", losses(), **{metric: mine})
    two.measured("champion/base", losses(), **{metric: theirs})
    assert two.decide(metric=metric)["wins"] == wins


def test_a_difference_within_its_interval_is_none(two):
    theirs = [float(i % 2) for i in range(16)]
    mine = [float(i % 2 or i == 0) for i in range(16)]  # one picture more of sixteen
    two.measured("ensemble/base", losses(), concepts=mine)
    two.measured("champion/base", losses(), concepts=theirs)
    found = two.decide(metric="concepts")
    assert not found["wins"]
    assert found["compared"][0]["low"] < 0 < found["compared"][0]["gain"]


def test_pictures_of_which_nothing_was_asked_do_not_count(two):
    two.measured("ensemble/base", losses(), concepts=[1.0, None, 1.0, None])
    two.measured("champion/base", losses(), concepts=[0.0, None, 0.0, None])
    found = two.decide(metric="concepts")
    assert found["compared"][0]["gain"] == 1.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"noise": {"P_mean": -1.2, "P_std": 1.0}}, "noise.P_std: 1.2 → 1.0"),
        ({"sigma_data": 0.6}, "sigma_data: 0.5 → 0.6"),
        ({"degrade": {"probability": 0.1}}, "degrade: unset → {'probability': 0.1}"),
        ({"validation": "other"}, "validation: unset → other"),
        ({"seed": 1}, "seed: 0 → 1"),
    ],
)
def test_what_was_measured_differently_is_refused_in_words(two, change, words):
    two.measured("ensemble/base", losses(0.05), how={**HOW, **change})
    two.measured("champion/base", losses())
    found = two.decide()
    assert not found["wins"]
    assert found["why"] == (
        f"val_loss of base was measured differently for the two ({words}); remove both "
        "evaluations, and run again"
    )


@pytest.mark.parametrize("stages", [["base"], ["base", "sr"]])
def test_a_model_that_diverged_loses_whatever_another_stage_gains(two, stages):
    for stage in stages:
        two.measured(f"champion/{stage}", losses())
        two.measured(f"ensemble/{stage}", losses(0.02))
    diverged = losses(0.02)
    diverged[3] = float("nan")
    two.measured("ensemble/last", diverged)
    two.measured("champion/last", losses())
    found = two.decide()
    assert not found["wins"] and "val_loss of last is worse" in found["why"]


@pytest.mark.slow
def test_of_many_comparisons_none_is_lost_by_chance():
    """Twelve stages without a true difference, and one that is better for sure."""
    generator = torch.Generator().manual_seed(0)
    rule, refused = {"metric": "concepts", "margin": 0.0}, 0
    for _ in range(400):
        rows = []
        for stage in range(13):
            theirs = torch.rand(64, generator=generator)
            mine = theirs + 0.05 * torch.randn(64, generator=generator) + (stage == 0)
            row = {"on": str(stage), "whole": True}
            rows.append(row | gate.gain_row(mine, theirs, rule, 13))
        refused += not gate.decide_winner(rows, "concepts")[0]
    assert refused / 400 < 0.05  # 2.5 % at most, not the 26 % of twelve single intervals


def test_a_difference_of_rounding_is_none(two):
    two.measured("champion/base", losses())
    two.measured("ensemble/base", [x * (1 - 1e-7) for x in losses()])
    assert "is no better" in two.decide()["why"]
    two.measured("champion/sr", losses())
    two.measured("ensemble/sr", [x * (1 + 1e-7) for x in losses()])
    assert "is no better" in two.decide()["why"]


def test_a_measure_of_which_no_picture_was_asked_is_a_mistake(two):
    nothing = [None] * 64
    two.measured("ensemble/base", losses(), concepts=nothing)
    two.measured("champion/base", losses(), concepts=nothing)
    with pytest.raises(ValueError, match="applies to no picture of base"):
        two.decide(metric="concepts")


def test_mlflow_takes_the_names_of_all_gains(two):
    from mlflow.utils.validation import _validate_metric_name

    for role in ("", "-before"):
        two.measured(f"ensemble{role}/base", losses(0.01))
        two.measured(f"champion{role}/base", losses())
    names = [row["metric"] for row in two.decide()["compared"]]
    assert len(set(names)) == 6
    for name in names:
        _validate_metric_name(name)


def test_a_metric_that_was_not_measured_is_a_mistake(two):
    two.measured("ensemble/base", losses())
    two.measured("champion/base", losses())
    with pytest.raises(ValueError, match="concepts was not measured here, only val_loss"):
        two.decide(metric="concepts")


def test_a_metric_without_an_interval_is_refused():
    with pytest.raises(ValueError, match="write kernel_distance"):
        Promotion(metric="frechet_distance")


def test_other_encoders_are_not_compared(two):
    two.measured("ensemble/base", losses(0.05))
    two.measured("champion/base", losses())
    two.manifests["champion/base"]["info"]["strange"] = "the champion was trained with others"
    assert two.decide() == {
        "wins": False,
        "why": "the champion was trained with others",
        "champion": "c" * 16,
        "compared": [],
    }
