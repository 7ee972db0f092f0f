"""Effects: paired gains, their intervals over seeds and pictures, and p-values."""

import math

import numpy as np
import pytest
from gains_kit import claim, crossed, results
from scipy import stats

from pipelines.spec.study import Claim
from pipelines.studies.statistics import effect, effect_of


def of_gains(gain, measure="concepts"):
    """The effect of gains [S, N]."""
    gain = np.asarray(gain, dtype=np.float64)
    names = [str(seed) for seed in range(len(gain))]
    base = np.where(np.isnan(gain), np.nan, 1.0)
    return effect_of(dict(zip(names, base + gain)), dict(zip(names, base)), measure)


def test_a_lower_loss_and_a_higher_score_are_gains():
    low, high = {"0": np.full(4, 1.0)}, {"0": np.full(4, 3.0)}
    assert effect_of(low, high, "val_loss").mean == 2
    assert effect_of(low, high, "val_loss/1/8").mean == 2
    assert effect_of(low, high, "concepts").mean == -2
    assert effect_of(high, low, "concepts").relative == 200


def test_the_interval_over_seeds_is_that_of_scipy_for_the_seeds_means():
    gain = crossed(np.random.default_rng(1), 5, 40, 1, 0)
    found = of_gains(gain)
    means = gain.mean(axis=1)
    expected = stats.ttest_1samp(means, 0)
    assert found.over_seeds == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.interval == found.over_seeds  # seeds alone differ
    assert found.p == pytest.approx(expected.pvalue)
    assert found.p_above(found.over_seeds[0]) == pytest.approx(0.025)
    assert found.p_below(found.over_seeds[1]) == pytest.approx(0.025)


def test_the_bootstrap_has_the_pigeonhole_s_variance():
    """Exact, by Owen (2007): resampling each way adds the variances, and counts the noise twice."""
    seeds, pictures = 4, 60
    gain = crossed(np.random.default_rng(2), seeds, pictures, 1, 1)
    rest = gain - gain.mean(axis=0) - gain.mean(axis=1, keepdims=True) + gain.mean()
    exact = (
        gain.mean(axis=1).var() / seeds
        + gain.mean(axis=0).var() / pictures
        + rest.var() / (seeds * pictures)
    )
    assert of_gains(gain).error_over_both == pytest.approx(math.sqrt(exact), rel=0.04)


def test_pictures_that_differ_widen_the_interval_over_seeds():
    """All seeds agree, but on few pictures: another set of pictures might not."""
    found = of_gains(crossed(np.random.default_rng(3), 5, 50, 0.01, 1, 0.01) + 0.5)
    (low, high), (narrow_low, narrow_high) = found.interval, found.over_seeds
    assert found.interval == found.over_both
    assert high - low > 10 * (narrow_high - narrow_low)
    assert stats.ttest_1samp(found.gains, 0).pvalue < 0.05 < found.p


@pytest.mark.parametrize(
    ("seeds", "of_seeds", "of_pictures"),
    [(5, 1, 0), (5, 1, 1), (5, 0.2, 1), (3, 1, 0.5), (2, 1, 1)],
)
def test_the_interval_covers_the_true_gain_in_about_95_percent(seeds, of_seeds, of_pictures):
    random = np.random.default_rng(4)
    trials = 400
    covered = rejected = 0
    for _ in range(trials):
        found = of_gains(crossed(random, seeds, 100, of_seeds, of_pictures))
        covered += found.interval[0] <= 0 <= found.interval[1]
        rejected += found.p < 0.05
    assert covered + rejected == trials  # the p-value and the interval say the same
    assert 0.92 <= covered / trials <= 0.99


def test_one_seed_has_no_interval_and_decides_nothing():
    found = of_gains(np.ones((1, 10)) + np.arange(10))
    assert found.interval is None and found.over_both is None and found.relative_interval is None
    assert found.p == 1 and found.standardised is None
    assert found.notes == ("one seed: no interval",)


def test_fewer_than_five_seeds_are_marked():
    assert of_gains(np.eye(4)).notes == ("only 4 seeds",)
    assert of_gains(np.eye(5)).notes == ()


def test_the_standardised_gain_is_corrected_for_few_seeds():
    found = of_gains([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    assert found.standardised == pytest.approx(2 * math.gamma(1) / math.gamma(0.5))  # J for 2 d.f.
    many = of_gains(np.arange(101)[:, None] * np.ones(2))
    d = 50 / np.std(np.arange(101), ddof=1)
    assert many.standardised == pytest.approx(d * (1 - 3 / (4 * 100 - 1)), rel=1e-4)


def test_no_difference_at_all_is_no_gain():
    found = of_gains(np.zeros((3, 5)))
    assert found.p == 1 and found.interval == (0, 0)
    assert of_gains(np.ones((3, 5))).p == 0


def test_pictures_that_a_measure_does_not_apply_to_are_left_out():
    gain = crossed(np.random.default_rng(5), 3, 30, 1, 1)
    apart = np.full((3, 50), np.nan)
    apart[:, 20:] = gain
    found = of_gains(apart)
    assert found.pictures == 30
    assert found.gains == pytest.approx(of_gains(gain).gains)
    assert found.interval == pytest.approx(of_gains(gain).interval)


def test_each_seed_s_gain_is_the_mean_of_its_own_pictures():
    gain = crossed(np.random.default_rng(6), 4, 200, 1, 1)
    whole = of_gains(gain)
    gain[0, :20] = gain[3, 50:60] = np.nan
    found = of_gains(gain)
    assert found.pictures == 200
    assert found.gains == pytest.approx(np.nanmean(gain, axis=1).tolist())
    assert found.error_over_both == pytest.approx(whole.error_over_both, rel=0.2)
    assert found.draws.mean() == pytest.approx(found.mean, abs=3 * found.error_over_both / 60)


def test_a_value_that_one_model_lacks_is_refused():
    fine = {"0": np.ones(3), "1": np.ones(3)}
    lost = {"0": np.ones(3), "1": np.array([1, np.nan, 1])}
    with pytest.raises(ValueError, match="not a number for some pictures of seed 1"):
        effect_of(lost, fine, "val_loss")
    diverged = {"0": np.ones(3), "1": np.full(3, np.nan)}
    with pytest.raises(ValueError, match="not a number for some pictures of seed 1"):
        effect_of(diverged, diverged, "val_loss")
    with pytest.raises(ValueError, match="infinite for some pictures of seed 0"):
        effect_of({"0": np.array([1, np.inf])}, {"0": np.ones(2)}, "val_loss")
    with pytest.raises(ValueError, match="different numbers of pictures: 3, 4"):
        effect_of(fine, {"0": np.ones(4), "1": np.ones(4)}, "val_loss")


def test_an_effect_is_found_at_its_place():
    made = results({}, {"emoji": 0.01, "fashion": -0.02})
    comparison = Claim.model_validate(claim())
    assert effect(made, comparison).mean == pytest.approx(0.01, abs=1e-3)
    at = effect(made, comparison, {"data": "fashion"})
    assert at.mean == pytest.approx(-0.02, abs=1e-3)
    assert at.seeds == ("0", "1", "2", "3", "4") and at.pictures == 200


def test_a_measure_that_is_missing_is_named():
    comparison = Claim.model_validate(claim(measure="concepts"))
    with pytest.raises(ValueError, match="concepts was not measured, only val_loss"):
        effect(results({}, {}), comparison)
