"""The learning rate follows its formula, a function of the images seen."""

import math
from dataclasses import replace

import pytest

from ediffi_core.learning_rate import LearningRate

BATCH, END = 10, 1000
SCHEDULES = ("constant", "cosine", "linear", "inverse_sqrt")


def rate(schedule, **more):
    decay = {"decay_images": 250} if schedule == "inverse_sqrt" else {}
    return LearningRate(peak=1e-3, end=END, schedule=schedule, **decay, **more)


def curve(found, begin=0, end=END):
    return [found.at(place, BATCH) for place in range(begin, end, BATCH)]


@pytest.mark.parametrize("warmup", [0, 7, 1000, 1e9])
def test_a_constant_rate_is_bit_for_bit_the_ramp_and_the_peak(warmup):
    """As training computed it before there were schedules, in a node that continues too."""
    for begin in (0, 500):
        found = rate("constant", warmup_images=warmup, begin=begin)
        for place in range(0, END, BATCH):
            ramp = min(1.0, (place + BATCH) / warmup) if warmup else 1.0
            assert found.at(place, BATCH) == float(1e-3 * ramp)


def test_a_cosine_falls_from_the_peak_to_zero():
    found = rate("cosine")
    assert found.at(0, BATCH) == 1e-3 and found.at(END, BATCH) == 0
    assert found.at(END // 2, BATCH) == pytest.approx(0.5e-3)
    assert found.at(END // 4, BATCH) == pytest.approx(1e-3 * (1 + math.sqrt(0.5)) / 2)
    assert found.at(END - BATCH, BATCH) > 0  # the last step is not wasted


def test_a_line_falls_from_the_peak_to_zero():
    assert curve(rate("linear")) == pytest.approx([1e-3 * (1 - p / END) for p in range(0, END, 10)])
    assert rate("linear").at(END, BATCH) == 0


def test_inverse_sqrt_is_edm2s():
    """As its training loop computes it: lr / sqrt(max(images / reference, 1))."""
    expected = [1e-3 / math.sqrt(max(p / 250, 1)) for p in range(0, END, BATCH)]
    assert curve(rate("inverse_sqrt")) == pytest.approx(expected)
    assert rate("inverse_sqrt").at(END, BATCH) == 1e-3 / 2


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_fall_begins_where_the_warm_up_ends(schedule):
    found = rate(schedule, warmup_images=200)
    rising, falling = curve(found, 0, 200), curve(found, 200)
    assert rising == pytest.approx([1e-3 * p / 200 for p in range(10, 210, 10)])
    assert falling[0] == 1e-3 and found.at(END, BATCH) == 0
    assert falling == pytest.approx(curve(replace(rate(schedule), end=800), 0, 800))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_warm_up_longer_than_the_training_only_rises(schedule):
    found = curve(rate(schedule, warmup_images=2 * END))
    if schedule != "inverse_sqrt":
        assert found == pytest.approx([1e-3 * p / 2000 for p in range(10, 1010, 10)])
    assert min(found) > 0 and max(found) < 1e-3


@pytest.mark.parametrize("schedule", ["cosine", "linear", "inverse_sqrt"])
def test_a_node_that_continues_another_begins_anew(schedule):
    """Over the images that it adds it has the rates of a child of that length, warm-up and all."""
    child = replace(rate(schedule, warmup_images=100), end=600)
    single = replace(child, begin=END, end=END + 600)
    assert curve(single, END, END + 600) == curve(child, 0, 600)
    assert single.at(END, BATCH) == 1e-3 * 0.1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_node_that_adds_nothing_has_a_rate_too(schedule):
    assert rate(schedule, begin=END).at(END, BATCH) == 1e-3


def test_inverse_sqrt_without_its_images_is_refused():
    with pytest.raises(ValueError, match="inverse_sqrt needs decay_images"):
        LearningRate(peak=1, end=10, schedule="inverse_sqrt")
