"""Claims: what is supported, refuted or open, and how often by chance."""

import json

import numpy as np
import pytest
from gains_kit import claim, crossed, results

from pipelines.studies.claims import data, find, holm, text

EACH = {"each": {"data": "all"}}


def verdicts(found):
    return [finding.verdict for finding in found]


def test_a_claim_is_made_for_each_value_and_decided_by_sign():
    gains = {"emoji": 0.01, "fashion": -0.02}
    found = find(results({"win": claim(**EACH)}, gains))
    assert verdicts(found) == ["supported", "refuted"]
    assert [f.sentence for f in found] == [
        "Experts beat one model on emoji.",
        "Experts beat one model on fashion.",
    ]
    lose = claim(says="Experts lose", holds="worse", **EACH)
    found = find(results({"lose": lose}, gains))
    assert verdicts(found) == ["refuted", "supported"]
    assert found[0].sentence == "Experts lose (data emoji)"


def test_a_gain_within_the_margin_is_equivalent_and_one_beyond_it_is_not():
    same = claim(holds="equivalent", margin=0.02, **EACH)  # of about 0.325
    found = find(results({"same": same}, {"emoji": 0.001, "fashion": 0.02}))
    assert verdicts(found) == ["supported", "refuted"]
    assert found[0].margin == pytest.approx(0.0065, rel=0.01)
    (at_margin, _) = find(results({"same": same}, {"emoji": 0.0065, "fashion": 0.0065}))
    assert at_margin.verdict == "open" and at_margin.reason == "not significant"


def test_holm_is_the_step_down_method():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9, 0.001]) == pytest.approx([1.0, 1.0, 0.003])
    assert holm([]) == []


def test_more_claims_make_each_weaker():
    """Significant alone; open beside many others, even if their cells are not there."""
    gain = np.array([0.004, 0.016, 0.002, 0.018, 0.010])[:, None] + np.zeros((1, 200))
    (alone,) = find(results({"win": claim()}, {"emoji": gain}))
    assert alone.verdict == "supported" and 0.005 < alone.p < 0.05
    others = {f"other-{n}": claim(at={"data": "fashion"}) for n in range(20)}
    absent = [("fashion", seed) for seed in range(5)]
    found = find(results({"win": claim(), **others}, {"emoji": gain}, absent=absent))
    assert found[0].verdict == "open"
    assert found[0].reason == "significant alone, but not among 21 claims"
    assert found[0].p == alone.p and found[0].p_adjusted == pytest.approx(21 * alone.p)


@pytest.mark.parametrize(
    ("absent", "changes", "reason"),
    [
        ([("emoji", 3), ("emoji", 4)], {}, "seeds 3 and 4 of the base not finished"),
        (
            [("emoji", s) for s in range(5)],
            {},
            "seeds 0, 1, 2, 3 and 4 of the base not finished",
        ),
        (
            [],
            {"at": {"split": "three"}},
            "no experiment makes the cells of split three",
        ),
        (
            [],
            {"mine": {"group": "merged"}},
            "made-emoji-two-s0 has no merged, only ensemble and single",
        ),
        ([], {"measure": "concepts"}, "concepts was not measured, only val_loss"),
    ],
)
def test_what_is_missing_leaves_a_claim_open_and_is_named(absent, changes, reason):
    (found,) = find(results({"win": claim(**changes)}, {"emoji": 0.01}, absent=absent))
    assert found.verdict == "open" and found.reason == reason
    assert found.p is None and found.p_adjusted is None
    assert reason in text([found])


def test_one_seed_decides_nothing():
    (found,) = find(results({"win": claim()}, {"emoji": 0.01}, seeds=1))
    assert found.verdict == "open" and "at least 2" in found.reason
    assert found.effect.mean == pytest.approx(0.01, abs=1e-3)


def test_a_diverged_model_leaves_the_claim_open():
    gain = np.full((5, 200), 0.01)
    gain[2] = np.nan
    (found,) = find(results({"win": claim()}, {"emoji": gain}))
    assert found.verdict == "open"
    assert found.reason == "val_loss is not a number for some pictures of seed 2"


def test_claims_that_are_all_untrue_are_decided_in_about_5_percent_of_studies():
    """Ten claims of no gain at all; with Holm, any of them is decided in at most 5 % of studies."""
    random = np.random.default_rng(6)
    names = [f"routing-{n}" for n in range(10)]
    claims = {name: claim(mine={"group": name}) for name in names}
    studies, wrong, uncorrected = 100, 0, 0
    for _ in range(studies):
        others = {name: 1e-3 * crossed(random, 5, 50, 1, 0.5) for name in names}
        found = find(results(claims, {}, pictures=50, others=others))
        wrong += any(f.verdict != "open" for f in found)
        uncorrected += any(f.p < 0.05 for f in found)
    assert wrong / studies <= 0.09
    assert uncorrected / studies > 0.25


def test_a_margin_is_passed_wrongly_in_5_percent():
    """A gain that is just the margin is called equivalent, or not, in about 5 % of studies."""
    random = np.random.default_rng(7)
    same = {"same": claim(holds="equivalent", margin=0.1)}
    studies, wrong = 300, 0
    for _ in range(studies):
        gain = 0.0325 + 1e-3 * crossed(random, 5, 100, 1, 0)
        (found,) = find(results(same, {"emoji": gain}, pictures=100))
        wrong += found.verdict != "open"
    assert 0.02 <= wrong / studies <= 0.11


def test_a_line_has_verdict_sentence_gain_interval_share_and_counts():
    (found,) = find(results({"win": claim()}, {"emoji": 0.01}, seeds=3))
    line = text([found])
    assert line.startswith("supported  Experts beat one model on emoji: +0.009")
    for part in (" %, 3 seeds × 200 pictures; adjusted p ", "; only 3 seeds", "[+0.0"):
        assert part in line
    assert "\n" not in line


def test_the_data_are_json_and_hold_the_line_s_numbers():
    found = find(results({"win": claim(**EACH)}, {"emoji": 0.01}, absent=[("fashion", 0)]))
    first, second = json.loads(json.dumps(data(found), allow_nan=False))
    assert first["claim"] == "win" and first["at"] == {"data": "emoji"}
    assert first["verdict"] == "supported" and first["reason"] == ""
    effect = first["effect"]
    assert effect["interval"][0] < effect["gain"] < effect["interval"][1]
    assert len(effect["gains"]) == len(effect["seeds"]) == 5
    assert second["verdict"] == "open" and second["p_adjusted"] is None
    assert second["effect"]["seeds"] == ["1", "2", "3", "4"]
