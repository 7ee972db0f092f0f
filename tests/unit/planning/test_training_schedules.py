"""Learning-rate schedules and experts' own rates in a plan; specs without them are unchanged."""

import pytest
from planning_kit import edited, planned

from pipelines.dag.plan import digest
from pipelines.planning.diff import compare
from pipelines.reports import plan as plan_view
from pipelines.spec.adaptive import Adaptive

BEFORE = {
    "smoke": (5, "cd47d42d230f30ad"),
    "ediffi-d": (18, "d510da85d5de60ec"),
}
"""Number of training nodes and digest of all their settings, from before networks and schedules
could be chosen. If these change, all stored experts are trained again."""

COSINE = {"stages__base__training__schedule": "cosine"}


def settings(*args, **changes):
    verdicts = planned(edited(*args, **changes)).verdicts.values()
    return {v.node.id: dict(v.node.settings) for v in verdicts if v.node.kind == "train"}


def training(**changes):
    return {i.removeprefix("train/"): s["training"] for i, s in settings(**changes).items()}


@pytest.mark.parametrize("name", BEFORE)
def test_a_spec_from_before_has_the_settings_it_had(name):
    found = settings(name)
    assert (len(found), digest(found)) == BEFORE[name]


def test_a_growing_tree_is_the_same_execution_as_before():
    assert Adaptive(budget=19200, images=2400, depth=4, min_gain=0.01).settings() == {
        "budget": 19200,
        "images": 2400,
        "depth": 4,
        "min_gain": 0.01,
        "cpus": 1,
    }


def test_an_experts_own_rate_changes_that_expert_only():
    before, own = training(), {"learning_rate": 1e-4, "warmup_images": 32, "schedule": "cosine"}
    after = training(stages__base__experts__E1_1={"images": 128, **own})
    assert after.pop("base/E1_1") == before.pop("base/E1_1") | own
    assert after == before


def test_experts_that_grow_have_their_own_rate():
    own = {"stages__base__adaptive__learning_rate": 2e-4}
    before, after = settings("adaptive"), settings("adaptive", **own)
    changed = {i for i in before if before[i] != after[i]}
    assert changed == {"train/base/E1_1", "train/base/E1_0"}
    assert {after[i]["training"]["learning_rate"] for i in changed} == {2e-4}


def test_a_plan_shows_a_schedule_that_is_not_constant():
    plain, made = planned(edited()), planned(edited(**COSINE))
    lines = plan_view.text(made).splitlines()
    [line] = [x for x in lines if x.startswith("run ") and "train/base/E1_1" in x.split()]
    assert "128 images  cosine  never done here" in line
    assert "cosine" not in plan_view.text(plain) and "constant" not in plan_view.text(plain)
    shown = {n["id"]: n["schedule"] for n in plan_view.data(made)["nodes"]}
    assert shown["train/base/single"] == "cosine" and shown["train/sr32/E0_0"] == "constant"
    assert shown["evaluate/base/root"] is None


def test_a_changed_schedule_is_the_reason_to_train_again():
    found = {d.node: d.why for d in compare(planned(edited()), planned(edited(**COSINE)))}
    assert found["train/base/E0_0"] == ["training.schedule: unset → cosine"]
    assert not any(node.startswith("train/sr32") for node in found)
