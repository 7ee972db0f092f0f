"""Attention to the words of a prompt: it adds up, follows paint, and changes no picture."""

import ensemble_kit
import numpy as np
import pytest
import torch
from ensemble_kit import FOLDER

from ediffi_core.analysis import attention_shares
from ediffi_core.control import Phrase
from pipelines.models.attention import WordAttention
from pipelines.models.text_to_image import TextToImage

pytestmark = pytest.mark.slow

PROMPTS = ["A frog, a 'Frog'!", "a frog and a rocket, on a pink background", "a rocket"]
NEGATIVE = "a rocket, " * 9
EXPERTS = [("base", ["E1_1"]), ("base", ["E1_0"]), *[("sr16", ["E0_0"])] * 3]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.set_num_threads(1)
    store = ensemble_kit.make(tmp_path_factory.mktemp("store"))
    return TextToImage.load(store.local(f"{FOLDER}/ensemble.json"))


def drawn(model, rows=(0, 1, 2), **options):
    attention, rows = WordAttention(), list(rows)
    for name in ("paint", "negative"):
        if name in options:
            options[name] = [options[name][row] for row in rows]
    pictures = model.sample(
        [PROMPTS[row] for row in rows],
        seed=[row + 1 for row in rows],
        attention=attention,
        **options,
    )
    return pictures, [attention.of(i) for i in range(len(rows))]


def test_words_are_told_by_their_places_in_the_prompt(model):
    _, [found, *_] = drawn(model)
    assert found.words == ["A", "frog", "a", "Frog"]
    assert [PROMPTS[0][start:end] for start, end in found.spans] == found.words
    assert found.spans[1] == (2, 6) and found.spans[3] == (11, 15)


def test_ranges_follow_the_experts_from_high_noise_to_low(model):
    _, found = drawn(model)
    for row, words in zip(found, (4, 9, 2), strict=True):
        assert [(r.stage, r.experts) for r in row.ranges] == EXPERTS
        levels = [level for r in row.ranges[:2] for level in r.sigma]
        assert levels == sorted(levels, reverse=True) and levels[0] == pytest.approx(80)
        for r in row.ranges:
            assert r.maps.shape == (words, 4, 4) and r.maps.dtype == np.float32
            assert (r.maps > 0).all() and (r.maps < 1).all()
            assert r.shares.sum() == pytest.approx(1, abs=1e-5)
            means = r.maps.mean(axis=(1, 2))
            assert r.shares == pytest.approx(means / means.sum())


def test_it_is_the_attention_that_hooks_measure(model):
    """Shares of whole embeddings, by another path, of one row without guidance."""
    nets = [e.denoiser.net for e in model.stages[0].denoiser.experts]
    attention, given = WordAttention(), {"sampling": {"guidance": 0.0}, "up_to": "base"}
    with attention_shares(nets[0]) as low, attention_shares(nets[1]) as high:
        model.sample(PROMPTS[:1], seed=1, attention=attention, **given)
    for measured, found in zip((high, low), attention.recorder.ranges.values(), strict=True):
        for name, maps in found.of(0).items():
            expected = np.mean([m.shares[name] for m in measured])
            assert float(maps.sum(dim=0).mean()) == pytest.approx(expected, rel=1e-4)
        total = sum(maps.sum(dim=0) for maps in found.of(0).values())
        torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("options", [{}, {"negative": [NEGATIVE] * 3}, {"batch": 3}])
def test_it_changes_no_bit_and_is_the_same_in_any_company(options, model):
    pictures, together = drawn(model, **options)
    seeds = {"seed": [1, 2, 3]} | options
    assert np.array_equal(pictures, model.sample(PROMPTS, **seeds))
    for row in range(3):
        _, [alone] = drawn(model, [row], **options)
        for a, b in zip(alone.ranges, together[row].ranges, strict=True):
            assert a.sigma == b.sigma
            np.testing.assert_allclose(a.maps, b.maps, rtol=1e-4, atol=1e-7)


def test_a_negative_prompt_does_not_count(model):
    """At the first level, before it has changed the picture."""
    one = {"sampling": {"steps": 1}, "up_to": "base"}
    _, [guided] = drawn(model, [0], negative=[NEGATIVE] * 3, **one)
    _, [plain] = drawn(model, [0], **one)
    np.testing.assert_allclose(guided.ranges[0].maps, plain.ranges[0].maps, rtol=1e-4)


def test_a_painted_word_draws_attention_to_its_place(model):
    mask = torch.zeros(8, 8)
    mask[:, 4:] = 1
    paint = [[], [Phrase("rocket", mask, strength=1.0)], []]
    _, found = drawn(model, paint=paint)
    _, plain = drawn(model)
    at = found[1].words.index("rocket")

    def lead(row):
        """How much more the right half attends to the word."""
        word = row.ranges[0].maps[at]
        return word[:, 2:].mean() / word[:, :2].mean()

    assert lead(found[1]) > 1.5 * lead(plain[1])
    np.testing.assert_allclose(found[2].ranges[0].maps, plain[2].ranges[0].maps, rtol=1e-4)


def test_pictures_that_leave_have_the_ranges_they_reached(model):
    class Leaving:
        steps = 0

        def step(self, done):
            self.steps += 1

        def wanted(self):
            return [True, self.steps < 2, True]

    _, found = drawn(model, watch=Leaving())
    _, whole = drawn(model)
    assert [len(row.ranges) for row in found] == [5, 1, 5]
    for row in (0, 2):
        for a, b in zip(found[row].ranges, whole[row].ranges, strict=True):
            np.testing.assert_allclose(a.maps, b.maps, rtol=1e-4, atol=1e-7)


def test_a_second_prompt_is_left_out(model):
    _, [row] = drawn(model, [0], then="a rocket", switch=0.5)
    assert [r.stage for r in row.ranges] == ["base"]
    _, [row] = drawn(model, [0], up_to="base")
    assert [r.stage for r in row.ranges] == ["base", "base"]


def test_it_is_of_one_drawing(model):
    attention = WordAttention()
    with pytest.raises(ValueError, match="nothing is drawn yet"):
        attention.of(0)
    with pytest.raises(ValueError, match="3 do not fit in `batch=2`"):
        drawn(model, batch=2)
    model.sample(["a frog"], attention=attention)
    with pytest.raises(ValueError, match="has collected a drawing already; make a new one"):
        model.sample(["a frog"], attention=attention)
