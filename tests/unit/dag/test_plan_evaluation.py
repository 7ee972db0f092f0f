"""Plans that grow, are compared with a champion, or retrain it: from a store, without Ray."""

import pytest
from plan_kit import Promoted, finish, spec

from ediffi_core import tree
from pipelines.dag import plan
from pipelines.store.artifacts import Store

ADAPTIVE = {"budget": 128 * 6, "images": 128}


def grows(raw):
    base = raw["stages"]["base"]
    base |= {"experts": {"E0_0": {"images": 256}}, "adaptive": ADAPTIVE}
    del base["ensemble"], base["single"]


def gained(gain):
    return {
        "metrics": {
            "val_loss_parent": 0.2,
            "val_gain": gain,
            "val_gain_low": gain - 0.001,
            "val_gain_high": gain + 0.001,
        }
    }


@pytest.fixture
def store(tmp_path):
    return Store.open(str(tmp_path / "store"))


def experts(made):
    return [
        v.node.settings["expert"]
        for v in made.verdicts.values()
        if v.node.kind == "train" and v.node.name.startswith("base/")
    ]


def grow(store, made, gains):
    """Finish what the plan trains until it trains no more; → the final plan, the nodes by round."""
    orders = []
    while True:
        todo = [v for v in made.verdicts.values() if v.node.kind == "train" and not v.cached]
        if not todo:
            return made, orders
        orders.append({v.node.name for v in todo})
        for verdict in todo:
            name = verdict.node.settings["expert"]
            finish(store, verdict, **({} if name == tree.ROOT else gained(gains.get(name, -0.01))))
        made = made.regrow()


def test_a_tree_grows_by_what_the_store_has(store):
    made = plan.make(spec(grows), store, {})
    first = made.fingerprint
    assert experts(made) == ["E0_0", "E1_1", "E1_0"] and made.is_growing
    assert not [i for i in made.verdicts if i.startswith(("promote", "adopt/base", "evaluate"))]

    gains = {"E1_1": 0.02, "E2_3": 0.01, "E3_7": -0.01, "M_C": 0.01}
    made, orders = grow(store, made, gains)
    assert orders[1:] == [{"base/E2_3"}, {"base/E3_7"}, {"base/M_C"}]
    assert not made.is_growing and made.fingerprint == first
    base = made.spec.stages["base"]
    assert base.ensemble == ["E2_3", "M_C", "E1_0"]
    assert made.verdicts["adopt/base"].node.settings["seats"]["E1_0"] == ["base/E1_0", "base/E0_0"]
    assert "promote/smoke" in made.verdicts
    # The complement covers what E2_3 and E1_0 leave.
    assert made.verdicts["train/base/M_C"].node.settings["interval"] == [0.5, 0.75]


def test_every_decision_is_reported_once(store):
    """Also that on an expert which was trained before, so that nothing waits for it."""
    first = plan.make(spec(grows), store, {})
    gains = {"E1_1": 0.02, "E1_0": 0.03, "E2_0": 0.01, "E2_3": 0.01}
    grow(store, first, gains)
    last = plan.make(spec(grows), store, {})
    reported = [line.split()[2] for line in last.new_decisions(first)]
    assert reported == [d.expert for d in last.trees["base"].decisions] and len(reported) == 5
    assert last.new_decisions(last) == []


def test_the_same_store_grows_the_same_tree(store):
    gains = {"E1_1": 0.02, "E1_0": 0.03}
    made, _ = grow(store, plan.make(spec(grows), store, {}), gains)
    again = plan.make(spec(grows), store, {})
    assert list(again.verdicts) == list(made.verdicts)
    assert again.trees == made.trees and again.trees["base"].decisions[0].adopted
    assert all(v.cached for v in again.verdicts.values() if v.node.kind == "train")


def test_a_tree_with_a_list_of_experts_does_not_grow(store):
    made = plan.make(spec(), store, {})
    assert made.trees == {} and not made.is_growing


def longer(raw):
    raw["stages"]["base"]["experts"]["E1_1"]["images"] = 256


def other_validation(raw):
    raw["data"]["validation"]["rows"] = 48


def other_data(raw):
    raw["data"]["train"]["rows"] = 80


def comparing(made):
    return {i for i in made.verdicts if i.startswith(("gate", "evaluate")) and "/ensemble" not in i}


def test_the_champion_is_not_compared_with_itself(store):
    assert "gate/smoke" not in Promoted(store).plan().verdicts


def test_a_new_ensemble_is_compared_on_the_same_pictures(store):
    made = Promoted(store).plan(longer)
    assert {"gate/smoke", "evaluate/base/champion", "evaluate/sr32/champion"} <= comparing(made)
    gate, theirs = made.verdicts["gate/smoke"].node, made.verdicts["evaluate/base/champion"].node
    assert gate.inputs["candidate"] == "promote/smoke"
    assert theirs.inputs["validation"] == "embed/validation"
    assert set(theirs.external) == {"base/E1_1", "base/E1_0"}
    assert list(made.verdicts)[-1] == "gate/smoke"


def test_with_other_validation_data_both_are_measured_on_the_champions_too(store):
    made = Promoted(store).plan(other_validation)
    names = {"evaluate/base/ensemble-before", "evaluate/base/champion-before"}
    assert names <= set(made.verdicts)
    for name in names:
        assert "validation" in made.verdicts[name].node.external
    assert names <= set(made.verdicts["gate/smoke"].node.inputs.values())


def losses_of(made):
    return {
        i: v.node.settings["losses"] for i, v in made.verdicts.items() if i.startswith("evaluate/")
    }


def retrained_easily(raw):
    """Train on what gives lower losses: other p(σ), weight, degradation, and another tree."""
    raw["stages"]["base"] |= {"P_std": 1.0, "P_mean": -0.8, "sigma_data": 0.6}
    raw["stages"]["base"]["experts"]["E2_3"] = {"images": 128}
    raw["stages"]["base"]["experts"]["M_C"] = {"images": 128}
    raw["stages"]["base"]["ensemble"] = ["E2_3", "M_C", "E1_0"]
    raw["stages"]["sr32"]["degrade"] = {"probability": 0.0}


def test_both_sides_are_measured_alike_however_they_were_trained(store):
    before = losses_of(plan.make(spec(), store, {}))
    now = losses_of(Promoted(store).plan(retrained_easily))
    base, sr = now["evaluate/base/ensemble"], now["evaluate/sr32/ensemble"]
    assert now["evaluate/base/champion"] == base and now["evaluate/sr32/champion"] == sr
    for group in ("root", "single"):
        assert now[f"evaluate/base/{group}"] == base
    # Of the training settings only the experts' intervals matter.
    was = before["evaluate/base/ensemble"]
    assert {k: v for k, v in base.items() if was[k] != v}.keys() == {"cut", "experts", "draws"}
    assert base["cut"] == {"P_mean": -0.8, "P_std": 1.0}
    assert base["experts"] == {"E2_3": [0.75, 1.0], "M_C": [0.5, 0.75], "E1_0": [0.0, 0.5]}
    assert sr == before["evaluate/sr32/ensemble"]
    assert sr["super_resolution"]["degrade"]["probability"] == 0.5


def test_a_spec_says_what_both_sides_are_measured_on(store):
    def change(raw):
        longer(raw)
        raw["evaluate"]["losses"] = {"P_mean": 0.0, "draws": 8192, "degrade": {"probability": 1.0}}

    made = losses_of(Promoted(store).plan(change))
    for stage, each in (("base", 4096), ("sr32", 8192)):
        ours, theirs = (made[f"evaluate/{stage}/{who}"] for who in ("ensemble", "champion"))
        assert ours == theirs and ours["draws"] == each
        assert ours["noise"] == {"P_mean": 0.0, "P_std": 1.2}
    assert made["evaluate/sr32/ensemble"]["super_resolution"]["degrade"]["probability"] == 1.0


def test_many_experts_have_the_fewest_draws_each():
    from pipelines.spec.evaluation import FEWEST_DRAWS, Losses

    assert Losses().draws_each(1) == 4096 and Losses().draws_each(3) == 1365
    assert Losses().draws_each(32) == FEWEST_DRAWS


def test_the_gate_does_not_change_what_is_promoted(store):
    with_it = Promoted(store).plan(longer).verdicts["promote/smoke"].fingerprint
    assert with_it == plan.make(spec(longer), store, {}).verdicts["promote/smoke"].fingerprint


def test_a_retraining_continues_every_slot(store):
    promoted = Promoted(store)
    made = promoted.plan(other_data, retrain=True)
    trained = {v.node.name: v.node for v in made.verdicts.values() if v.node.kind == "train"}
    assert set(trained) == {"base/E1_1", "base/E1_0", "sr32/E0_0"}
    node = trained["base/E1_1"]
    assert node.settings["images"] == 32 and node.settings["interval"] == [0.5, 1.0]
    assert (
        node.external["parent"].fingerprint
        == promoted.champion.manifest["weights"]["base/E1_1"]["fingerprint"]
    )
    assert node.settings["stream"] != "base/E1_1"
    candidates = made.verdicts["adopt/base"].node.settings["seats"]["E1_1"]
    assert candidates == ["base/E1_1", "champion/base/E1_1"]
    assert "gate/smoke" in made.verdicts


def test_a_retraining_keeps_an_experts_own_rate(store):
    def slower(raw):
        other_data(raw)
        raw["stages"]["base"]["experts"]["E1_1"]["learning_rate"] = 1e-4

    made = Promoted(store).plan(slower, retrain=True)
    training = {v.node.name: v.node.settings.get("training") for v in made.verdicts.values()}
    rates = {slot: training[f"base/{slot}"]["learning_rate"] for slot in ("E1_1", "E1_0")}
    assert rates == {"E1_1": 1e-4, "E1_0": 1e-3}


def test_a_retraining_with_other_networks_is_refused(store):
    promoted = Promoted(store)
    with pytest.raises(
        ValueError, match=r"stage base has another network .* network.channels: 16 → 48"
    ):
        promoted.plan(
            lambda raw: raw["stages"]["base"]["network"].update(channels=48), retrain=True
        )


def test_a_champion_of_other_stages_is_not_compared_nor_retrained(store):
    promoted = Promoted(store)

    def larger(raw):
        raw["stages"]["sr32"] |= {"resolution": 64}

    assert "gate/smoke" not in promoted.plan(larger).verdicts
    with pytest.raises(ValueError, match="its stages are base 16 → sr32 64, the champion's base"):
        promoted.plan(larger, retrain=True)


def test_another_length_of_the_average_trains_nothing_anew(store):
    """Only the nodes that draw with the stage differ, and only where a length is set."""

    def fingerprints(**sampling):
        def change(raw):
            raw["stages"]["base"]["training"]["snapshot_images"] = 16
            raw["stages"]["base"]["sampling"] |= sampling

        verdicts = plan.make(spec(change), store, {}).verdicts
        return {name: verdict.fingerprint for name, verdict in verdicts.items()}

    plain, longer = fingerprints(), fingerprints(ema_length=0.1)
    assert fingerprints(ema_length=None) == plain
    changed = {name.partition("/")[0] for name in plain if plain[name] != longer[name]}
    assert changed == {"evaluate", "compare", "promote"}
    assert {n for n in plain if n.startswith("evaluate/") and plain[n] == longer[n]} == set()
