"""Where trees cut p(σ): given quantiles, and equal difficulty once that is measured."""

import pytest
from plan_kit import Promoted, finish, spec
from pydantic import ValidationError

from pipelines.dag import plan
from pipelines.planning import lint
from pipelines.reports import plan as shown
from pipelines.store.artifacts import Store

CUTS = [round((k / 32) ** 2, 6) for k in range(1, 32)]


@pytest.fixture
def store(tmp_path):
    return Store.open(str(tmp_path / "store"))


def base(**more):
    return lambda raw: raw["stages"]["base"].update(more)


def settings(made, expert):
    return made.verdicts[f"train/base/{expert}"].node.settings


def test_given_quantiles_move_the_intervals_everywhere(store):
    made = plan.make(spec(base(boundaries=[0.3])), store, {})
    assert settings(made, "E1_0")["interval"] == [0.0, 0.3]
    assert settings(made, "E1_1")["interval"] == [0.3, 1.0]
    assert settings(made, "single")["interval"] == [0.0, 1.0]
    experts = {"E1_1": [0.3, 1.0], "E1_0": [0.0, 0.3]}
    evaluated = made.verdicts["evaluate/base/ensemble"].node.settings
    assert evaluated["stages"][-1]["experts"] == evaluated["losses"]["experts"] == experts
    assert made.verdicts["promote/smoke"].node.settings["stages"][0]["experts"] == experts
    assert not made.is_growing and "difficulty/base" not in made.verdicts
    before = plan.make(spec(), store, {}).verdicts
    same = {i for i, v in made.verdicts.items() if v.fingerprint == before[i].fingerprint}
    assert {"train/base/E0_0", "train/base/single", "train/sr32/E0_0"} <= same
    assert "train/base/E1_0" not in same


@pytest.mark.parametrize(
    ("boundaries", "why"),
    [([], "is empty"), ([0.3, 0.5], "1, 3, 7"), ([0.0], "must rise"), ([1e-8], "leave E1_0 less")],
)
def test_impossible_boundaries_are_refused_with_the_spec(boundaries, why):
    with pytest.raises(ValidationError, match=why):
        spec(base(boundaries=boundaries))


def measure(store, made):
    finish(store, made.verdicts["difficulty/base"], info={"boundaries": CUTS})


def test_the_root_alone_is_planned_until_its_difficulty_is_measured(store):
    made = first = plan.make(spec(base(boundaries="difficulty")), store, {})
    trained = [i for i in made.verdicts if i.startswith("train/")]
    assert trained == ["train/base/E0_0", "train/base/single", "train/sr32/E0_0"]
    assert made.is_growing and made.unplaced == {"base": 256}
    assert not [i for i in made.verdicts if i.startswith(("adopt", "evaluate", "promote"))]
    assert "and up to 256 more as base grows" in shown.text(made)
    before = plan.make(spec(), store, {}).verdicts
    for name in trained:
        assert made.verdicts[name].fingerprint == before[name].fingerprint
    needs = made.verdicts["difficulty/base"].node.dependencies
    assert needs == ["embed/validation", "train/base/E0_0"]

    finish(store, made.verdicts["train/base/E0_0"])
    assert made.regrow().unplaced == {"base": 256}
    measure(store, made)
    made = made.regrow()
    assert not made.is_growing and made.fingerprint == first.fingerprint
    assert settings(made, "E1_0")["interval"] == [0.0, 0.25]
    assert settings(made, "E1_1")["interval"] == [0.25, 1.0]
    assert made.verdicts["difficulty/base"].cached and "promote/smoke" in made.verdicts
    losses = made.verdicts["evaluate/base/ensemble"].node.settings["losses"]["experts"]
    assert losses == {"E1_1": [0.25, 1.0], "E1_0": [0.0, 0.25]}
    assert made.new_decisions(first) == [
        "base cuts p(σ) by difficulty: half of the root's loss is below quantile 0.25"
    ]
    given = plan.make(spec(base(boundaries=CUTS)), store, {}).verdicts
    for name in ("train/base/E1_0", "evaluate/base/ensemble", "promote/smoke"):
        assert made.verdicts[name].fingerprint == given[name].fingerprint


def test_an_adaptive_tree_grows_on_boundaries_of_equal_difficulty(store):
    def grows(raw):
        adaptive = {"budget": 128 * 6, "images": 128}
        base(boundaries="difficulty", experts={"E0_0": {"images": 256}}, adaptive=adaptive)(raw)
        del raw["stages"]["base"]["ensemble"], raw["stages"]["base"]["single"]

    made = plan.make(spec(grows), store, {})
    first = made.fingerprint
    finish(store, made.verdicts["train/base/E0_0"])
    measure(store, made)
    made = made.regrow()
    assert settings(made, "E1_1")["interval"] == [0.25, 1.0] and made.is_growing
    gains = {"E1_1": 0.02, "E1_0": -0.01, "E2_3": -0.01, "M_C": 0.01}
    while todo := [v for v in made.verdicts.values() if v.node.kind == "train" and not v.cached]:
        for verdict in todo:
            gain = gains.get(verdict.node.settings["expert"], 0.0)
            ends = {"val_gain_low": gain - 0.001, "val_gain_high": gain + 0.001}
            metrics = {"val_loss_parent": 0.2, "val_gain": gain, **ends}
            finish(store, verdict, metrics=metrics)
        made = made.regrow()
    assert not made.is_growing and made.fingerprint == first
    assert settings(made, "E2_3")["interval"] == [0.5625, 1.0]
    assert [d.share for d in made.trees["base"].decisions] == [0.75, 0.25, 0.4375]
    cascade = made.verdicts["promote/smoke"].node.settings["stages"][0]["experts"]
    assert sorted(cascade.values()) == [[0.0, 0.25], [0.25, 1.0]]


def test_a_retraining_takes_the_champion_s_intervals(store):
    champion = Promoted(store, base(boundaries=[0.3]))
    made = champion.plan(base(boundaries="difficulty"), retrain=True)
    assert settings(made, "E1_0")["interval"] == [0.0, 0.3]
    assert not made.is_growing and made.unplaced == {}


def test_boundaries_without_experts_are_reported(store):
    changed = base(boundaries="difficulty", experts={"E0_0": {"images": 256}}, ensemble=["E0_0"])
    alone = spec(changed)
    found = [f.text for f in lint.check(alone, plan.make(alone, store, {}))]
    assert any("`stages.base.boundaries` has no effect on E0_0 alone" in text for text in found)
