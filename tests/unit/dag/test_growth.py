"""Adaptive trees: how the metrics of finished experts grow them."""

import random

import pytest
from pydantic import ValidationError

from ediffi_core import tree
from ediffi_core.noise import NoiseDistribution
from pipelines.dag.growth import grow, outer_child
from pipelines.spec.adaptive import Adaptive

HIGH = ["E1_1", "E2_3", "E3_7", "E4_15"]


def measured(gain, low=None, loss=0.2):
    low = gain / 2 if low is None else low
    return {
        "val_loss_parent": loss,
        "val_gain": gain,
        "val_gain_low": low,
        "val_gain_high": 2 * gain - low,
    }


def grown(settings, gains):
    """Train whatever the tree asks for until it is grown; → the tree, and the order of training."""
    found, order = {}, []
    while True:
        now = grow(settings, found, NoiseDistribution())
        if not (new := [e for e in now.experts if e not in found]):
            return now, order
        order.append(new)
        found |= {e: measured(gains.get(e, -0.01)) for e in new}


def settings(experts=8, depth=4, **more):
    return Adaptive(budget=experts * 100, images=100, depth=depth, **more)


def test_a_child_is_the_outer_half_of_its_parent():
    assert [
        outer_child("E0_0", "high"),
        outer_child("E1_1", "high"),
        outer_child("E2_3", "high"),
    ] == HIGH[:3]
    assert [outer_child("E0_0", "low"), outer_child("E1_0", "low")] == ["E1_0", "E2_0"]
    assert all(tree.parent(outer_child(e, "high")) == e for e in HIGH)


def test_both_sides_are_tried_at_once_and_nothing_follows_that_gains_nothing():
    now, order = grown(settings(), {})
    assert order == [["E1_1", "E1_0"]] and now.ensemble == ("E1_1", "E1_0")
    assert now.end == "no side gained enough"
    assert [d.adopted for d in now.decisions] == [False, False]


def test_the_side_that_gained_more_is_split_first_and_the_complement_comes_last():
    gains = {"E1_1": 0.01, "E1_0": 0.03, "E2_0": 0.01, "E2_3": 0.01}
    now, order = grown(settings(), gains)
    # E1_0's gain leads to E2_0, whose half of it is still as much as E1_1's.
    assert order == [["E1_1", "E1_0"], ["E2_0"], ["E2_3"], ["E3_7"], ["E3_0"], ["M_C"]]
    assert now.ensemble == ("E2_3", "M_C", "E2_0")
    assert now.spent == 700 and now.end == "no side gained enough"


def test_a_refused_grandchild_leaves_its_parent_in_the_ensemble():
    now, _ = grown(settings(), {"E1_1": 0.01, "E2_3": 0.02})
    assert now.ensemble == ("E2_3", "M_C", "E1_0")
    refused = [d.expert for d in now.decisions if not d.adopted]
    assert refused == ["E1_0", "E3_7"]


def test_the_budget_pays_for_the_complement_too():
    gains = dict.fromkeys(HIGH, 0.01)
    for experts, expected in ((2, 2), (3, 2), (4, 4), (5, 5), (6, 6), (9, 6)):
        now, _ = grown(settings(experts), gains)
        assert now.spent == expected * 100 <= experts * 100
    assert grown(settings(4), gains)[0].end == "the budget of 400 images is spent"
    assert grown(settings(2), gains)[0].ensemble == ("E1_1", "E1_0")


def test_the_depth_ends_it():
    now, order = grown(settings(depth=2), dict.fromkeys([*HIGH, "E1_0", "E2_0"], 0.01))
    assert now.end == "the depth of 2 is reached" and order[-1] == ["M_C"]
    assert now.ensemble == ("E2_3", "M_C", "E2_0")


def test_a_small_gain_is_taken_but_not_followed():
    now, _ = grown(settings(min_gain=0.1), {"E1_1": 0.02, "E1_0": 0.05})
    # Lower bounds 0.01 and 0.025 of a loss of 0.2: 5 % and 12.5 %.
    assert [d.adopted for d in now.decisions[:2]] == [True, True]
    assert "E2_3" not in now.experts and "E2_0" in now.experts


def test_any_metrics_make_a_tree_that_covers_everything_once_and_stays_in_budget():
    rng = random.Random(0)
    for _ in range(300):
        own = settings(rng.randint(2, 14), rng.randint(1, 6))
        gains = {f"E{n}_{i}": rng.uniform(-0.01, 0.02) for n in range(8) for i in (0, 2**n - 1)}
        now, order = grown(own, gains)
        tree.check_cover(tree.intervals_of(list(now.ensemble)))
        assert now.spent <= own.budget and now.spent == 100 * sum(map(len, order))
        assert set(now.ensemble) <= set(now.experts)
        assert grown(own, gains) == (now, order)


def test_no_expert_is_ever_removed():
    """An expert that was asked for stays in the tree, whatever the others gain."""
    gains = {"E1_1": 0.01, "E1_0": 0.012, "E2_0": 0.005, "E2_3": 0.02}
    found, before = {}, ()
    for _ in range(8):
        now = grow(settings(), found, NoiseDistribution())
        assert now.experts[: len(before)] == before
        before = now.experts
        found |= {e: measured(gains.get(e, -0.01)) for e in now.experts}


def test_a_budget_must_pay_for_the_first_two():
    with pytest.raises(ValidationError, match="write at least 200"):
        Adaptive(budget=150, images=100)


STEPS = {"weighting": "sampler"}
LASTING = {f"E{n}_{i}": 0.01 for n in range(1, 12) for i in (0, 2**n - 1)}
"""Every child takes as much off its parent's loss, on its own interval."""


def test_by_the_samplers_steps_the_paper_s_own_tree_grows():
    """Of Config D: nine levels at the high end, three at the low, and the complement."""
    now, order = grown(settings(13, 9, **STEPS), LASTING)
    assert now.ensemble == ("E9_511", "M_C", "E3_0") and order[-1] == ["M_C"]
    assert order[1:9] == [[f"E{n}_{2**n - 1}"] for n in range(2, 10)]
    # By p(σ) every level halves what a side is worth, and the same gains split both in turn.
    even, _ = grown(settings(13, 9), LASTING)
    assert even.spent == now.spent and even.ensemble == ("E6_63", "M_C", "E6_0")


def test_the_share_is_the_samplers_own():
    found = {e: measured(0.01) for e in ("E1_1", "E1_0")}
    for weighting, shares in (("noise", (0.5, 0.5)), ("sampler", (0.705, 0.295))):
        own = settings(weighting=weighting)
        high, low = grow(own, found, NoiseDistribution()).decisions
        assert (high.share, low.share) == pytest.approx(shares, abs=1e-3)
        assert high.rate == pytest.approx(0.01 * high.share / 100 * 1e6)
    # Where a stage's p(σ) lies higher, its lower half has more of the steps.
    _, low = grow(settings(**STEPS), found, NoiseDistribution(P_mean=1.0)).decisions
    assert low.share > 0.4


def test_a_decision_says_by_what_it_was_ranked():
    found = {e: measured(0.01) for e in ("E1_1", "E1_0")}
    for weighting, words in (
        ("noise", "50.0% of p(σ)"),
        ("sampler", "70.5% of the sampler's steps"),
    ):
        high = grow(settings(weighting=weighting), found, NoiseDistribution()).decisions[0]
        assert high.gained == f"gained +0.0100 [+0.0050, +0.0150] on {words}"
        assert high.row()["weighting"] in high.gained


def test_a_spec_without_the_key_keeps_its_results():
    assert "weighting" not in settings().settings()
    assert settings(**STEPS).settings()["weighting"] == "sampler"
