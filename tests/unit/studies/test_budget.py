"""Where experts begin to pay."""

import numpy as np
import pytest
from gains_kit import crossed

from pipelines.studies.budget import crossing, text
from pipelines.studies.statistics import effect_of


def points(gains, seeds=5, scale=1e-4, seed=0):
    """An effect for each x → gain, with the spread ``scale``."""
    random = np.random.default_rng(seed)
    found = []
    for x, gain in gains.items():
        values = gain + scale * crossed(random, seeds, 100, 1, 1)
        names = [str(n) for n in range(seeds)]
        zero = np.zeros(100)
        found.append(
            (x, effect_of(dict(zip(names, values)), dict.fromkeys(names, zero), "concepts"))
        )
    return found


def test_a_gain_linear_in_log_x_crosses_where_it_is_zero():
    gains = {x: 0.01 * np.log(x / 5e4) for x in (1e4, 2e4, 4e4, 8e4, 16e4)}
    found = crossing(points(gains))
    assert found.rising
    assert found.low < 5e4 < found.high
    assert found.x == pytest.approx(5e4, rel=0.05)
    falling = crossing(points({x: -gain for x, gain in gains.items()}))
    assert not falling.rising
    assert falling.x == pytest.approx(5e4, rel=0.05) and falling.low < 5e4 < falling.high


def test_the_order_of_the_points_does_not_matter():
    given = points({1e4: -0.01, 4e4: 0.01})
    assert crossing(given) == crossing(given[::-1])
    assert crossing(given).x == pytest.approx(2e4, rel=0.05)


def test_without_a_change_of_sign_there_is_no_crossing():
    always, never = points({1: 0.01, 10: 0.02}), points({1: -0.02, 10: -0.01})
    assert crossing(always) is None and crossing(never) is None
    assert text(always, "images") == "at every measured images"
    assert text(never, "images") == "at no measured images"


def test_an_interval_that_leaves_the_measured_range_is_open():
    given = points({1e3: -0.01, 1e5: 0.0004}, scale=4e-4)
    found = crossing(given)
    assert 1e3 < found.low < found.x < 1e5 and found.high is None
    assert text(given, "images") == (
        f"above images {found.x:,.0f} [{found.low:,.0f}, above all measured]"
    )


def test_chance_makes_one_crossing_not_three():
    """Neighbours out of order are pooled: −, +, −, + crosses once, between the second and third."""
    found = crossing(points({1: -0.02, 10: 0.002, 100: -0.002, 1000: 0.02}, scale=1e-6))
    assert found.rising
    assert 10 * 0.9 < found.x < 100 * 1.1


def test_the_interval_covers_the_crossing_in_about_95_percent():
    """With few seeds the bootstrap alone would cover it in less than 90 %."""
    covered = 0
    trials = 25
    for trial in range(trials):
        gains = {x: 0.01 * np.log(x / 30) for x in (5, 15, 45, 135)}
        found = crossing(points(gains, scale=2e-3, seed=trial))
        covered += (found.low or 0) <= 30 <= (found.high or np.inf)
    assert covered >= 0.88 * trials


def test_what_has_no_crossing_by_mistake_is_refused():
    with pytest.raises(ValueError, match="at least two different x above 0"):
        crossing(points({1: 0.1}))
    with pytest.raises(ValueError, match="at least two different x above 0"):
        crossing(points({0: 0.1, 1: 0.2}))
    with pytest.raises(ValueError, match="at least 2 seeds for each x; 1 has one"):
        crossing(points({1: 0.1, 2: 0.2}, seeds=1))
