"""What probes find in a small real network, beside what it must be."""

import json

import evaluate_kit
import numpy as np
import pytest
import torch
from probe_kit import Described, denoiser, ensemble, model

from ediffi_core import analysis, draws
from ediffi_core.conditioning import Conditioning
from ediffi_core.metrics import Estimate, kernel_distance
from ediffi_core.precond import coefficients
from pipelines.evaluation.parts import DRAWN, REAL
from pipelines.evaluation.probes import encoders, guidance, prompt_switch, seconds, text_effect
from pipelines.evaluation.probes.model import Batch, Model
from pipelines.evaluation.scoring import MAIN
from pipelines.evaluation.workers import Workers, run
from pipelines.models.stages import draw
from pipelines.planning.network_size import TOKENS, size_of
from pipelines.spec.probes import (
    EncodersProbe,
    GuidanceProbe,
    PromptSwitchProbe,
    SecondsProbe,
    TextEffectProbe,
)
from pipelines.store.artifacts import Store

torch.set_num_threads(1)


@pytest.fixture
def noisy():
    """Clean pictures, their noise and their text."""
    cond, pictures = Described(6).read(range(6))
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x, draws.normal(1, "eps", torch.arange(6), tuple(x.shape[1:])), cond


def finite(data):
    json.dumps(data, allow_nan=False)


# -- text effect -----------------------------------------------------------------------------------


def test_text_changes_nothing_where_the_network_does_not_read_it(noisy):
    x, eps, cond = noisy
    deaf = denoiser(cross_attention=())
    for linear in deaf.net.get_submodule("projection").to_global.values():
        linear.weight.zero_()
    effect = analysis.text_effect(ensemble(deaf, deaf), x, eps, cond, 1.0)
    assert not effect.change.any() and effect.attention == {}
    assert not text_effect.explained(effect).any()


def test_text_changes_nothing_where_there_is_none(noisy):
    x, eps, cond = noisy
    effect = analysis.text_effect(ensemble(denoiser(0), denoiser(1)), x, eps, cond.null(), 1.0)
    assert not effect.change.any() and effect.attention == {}


@pytest.mark.parametrize(("sigma", "expert"), [(0.01, "E1_0"), (20.0, "E1_1")])
def test_the_change_is_that_of_the_raw_network(noisy, sigma, expert):
    x, eps, cond = noisy
    of = ensemble(denoiser(0), denoiser(1))
    effect = analysis.text_effect(of, x, eps, cond, sigma)
    net = of.expert_at(sigma).denoiser.net
    c = coefficients(torch.full((6,), sigma, dtype=torch.float64), 0.5)
    at = c.c_in.float()[:, None, None, None] * (x + sigma * eps), c.c_noise.float()
    raw, null = (net(*at, of_them).flatten(1) for of_them in (cond, cond.null()))
    expected = (raw - null).norm(dim=1) / raw.norm(dim=1)
    assert effect.expert == expert and (expected > 0.01).all()
    torch.testing.assert_close(effect.change.float(), expected, rtol=2e-2, atol=0)
    assert sum(effect.attention.values()) == pytest.approx(1, abs=1e-5)
    assert effect.attention["clip_image"] == 0 < effect.attention["t5"]


def test_the_explained_share_is_the_ratio_of_the_errors(noisy):
    x, eps, cond = noisy
    effect = analysis.text_effect(ensemble(denoiser(0), denoiser(1)), x, eps, cond, 1.0)
    share = Estimate.of(text_effect.explained(effect))
    expected = 1 - float(effect.error_with.sum() / effect.error_without.sum())
    assert share.mean == pytest.approx(expected, abs=1e-12) and share.low < share.mean


def test_the_text_effect_is_measured_at_all_noise_levels():
    found = text_effect.measure(model(batch=4), TextEffectProbe(levels=6, pictures=6))
    sigmas = [point["sigma"] for point in found.data["points"]]
    assert sigmas[0] == pytest.approx(0.002) and sigmas[-1] == pytest.approx(80)
    steps = np.diff(np.log(sigmas))
    assert steps == pytest.approx([steps[0]] * 5) and found.data["pictures"] == 6
    assert [p["expert"] for p in found.data["points"]] == ["E1_0"] * 3 + ["E1_1"] * 3
    halves = [found.metrics[f"change/{part}_noise"] for part in ("low", "high")]
    assert sum(halves) / 2 == pytest.approx(found.metrics["change"])
    assert 0 < found.metrics["attention"] < 1
    whole = text_effect.measure(model(batch=6), TextEffectProbe(levels=6, pictures=6))
    assert found.metrics == pytest.approx(whole.metrics, rel=1e-4)
    finite(found.data)


# -- prompt switch ---------------------------------------------------------------------------------


def test_the_ends_of_a_switch_are_the_prompts_alone():
    of = model(count=12, batch=3)
    for fraction, which in ((0.0, 1), (1.0, 0)):
        made = prompt_switch.switched(of, 6, fraction)
        for pictures, pair in zip(made, of.pairs(6), strict=True):
            alone = of.draw(Batch(**{**vars(pair[0]), "cond": pair[which].cond}))
            assert np.array_equal(pictures, alone)
    middle, ends = prompt_switch.switched(of, 6, 0.5), prompt_switch.switched(of, 6, 0.0)
    assert not np.array_equal(middle[0], ends[0])


def test_a_switch_is_scored_by_both_prompts():
    of = model(count=12, batch=3)
    options = PromptSwitchProbe(captions=64, fractions=[0.0, 0.1, 0.5, 1.0])
    found = prompt_switch.measure(of, options)
    points = {point["fraction"]: point for point in found.data["points"]}
    assert found.data["pairs"] == 6 and of.drawn == of.to_draw == 3 * 6
    assert points[0.1]["step"] == 0 and points[0.1]["second"] == points[0.0]["second"]
    pictures = np.concatenate(prompt_switch.switched(of, 6, 0.5))
    captions = of.source.captions(range(12))
    for part, named in (("first", captions[:6]), ("second", captions[6:])):
        expected = float(of.scores(pictures, named)["clip_score"].mean())
        assert points[0.5][part]["clip_score"]["value"] == pytest.approx(expected)
        assert found.metrics[f"0.5/{part}/clip_score"] == pytest.approx(expected)
    finite(found.data)


def test_one_caption_makes_no_pair():
    with pytest.raises(ValueError, match="at least 2 validation captions; add some"):
        model(count=1).pairs(4)


# -- encoders and guidance -------------------------------------------------------------------------


def test_all_encoders_and_the_own_scale_score_as_an_evaluation_does(tmp_path):
    job = evaluate_kit.job(Store.open(str(tmp_path)), sides=(8,), count=10, batch=4)
    parts = run(job, Workers())
    score = float(parts.scores[DRAWN]["clip_score"].mean())
    kernel = kernel_distance(parts.features(DRAWN, MAIN), parts.features(REAL, MAIN))
    of = Model.load(
        job.store,
        job.stages,
        job.weights,
        source=job.source(),
        scoring=job.scoring,
        seed=job.seed,
        batch=job.batch,
    )
    found = [
        encoders.measure(of, EncodersProbe(captions=10)).metrics,
        guidance.measure(of, GuidanceProbe(captions=10, scales=[0.0, 2.0])).metrics,
    ]
    for metrics, prefix in zip(found, ("all", "0"), strict=True):
        assert metrics[f"{prefix}/clip_score"] == score
        assert metrics[f"{prefix}/kernel_distance"] == float(kernel.mean())
    assert found[1]["2/clip_score"] != score


def test_every_encoder_is_drawn_with_alone():
    of = model(count=9, batch=4)
    specs = encoders.embeddings_of(of)
    found = encoders.measure(of, EncodersProbe(captions=9))
    kept = list(dict.fromkeys(point["encoders"] for point in found.data["points"]))
    assert kept == ["all", "clip_text", "t5", "none"] and of.drawn == of.to_draw == 4 * 9
    [batch] = model(count=9, batch=9).batches(9)
    for name, sequence, pooled in (("t5", "t5", False), ("clip_text", "clip_text", True)):
        cond = encoders.kept_alone(batch.cond, name, specs)
        assert [n for n, mask in cond.masks.items() if mask.any()] == [sequence]
        assert bool(cond.pooled["clip_text_pooled"].any()) is pooled
    none = encoders.kept_alone(batch.cond, encoders.NONE, specs)
    unconditional = draw([of.stage], batch.cond.null(), seed=0)["base"]
    assert torch.equal(draw([of.stage], none, seed=0)["base"], unconditional)
    finite(found.data)


def test_short_and_long_captions_are_apart():
    found = encoders.measure(model(count=9), EncodersProbe(captions=9))
    sizes = {p["captions"]: p["pictures"] for p in found.data["points"] if p["encoders"] == "t5"}
    assert sizes == {"all": 9, "short": 6, "long": 3} and found.data["median_words"] == 2
    by = {name: found.metrics[f"t5/{name}clip_score"] for name in ("", "short/", "long/")}
    assert (6 * by["short/"] + 3 * by["long/"]) / 9 == pytest.approx(by[""])


def test_guidance_keeps_all_other_settings():
    of = model(guidance={"scale": 1.0, "experts": {"E1_0": 3.0}, "interval": [0.1, 10.0]})
    scale = of.with_guidance(2.0).guidance
    assert [scale(sigma) for sigma in (0.05, 0.15, 5.0, 20.0)] == [0, 3, 2, 0]
    assert of.with_guidance(2.0).steps == 4


# -- seconds ---------------------------------------------------------------------------------------


def test_weights_that_serve_two_slots_are_stored_once():
    one = denoiser()
    count = size_of(one.net.config)
    for of, stored in ((ensemble(one, one), 1), (ensemble(one, denoiser(1)), 2)):
        given = model(of, guidance=1.0, tokens=TOKENS)
        found = seconds.measure(given, SecondsProbe(pictures=3, repeats=2))
        assert found.metrics["parameters_active"] == count.parameters
        assert found.metrics["parameters_stored"] == stored * count.parameters
        assert found.metrics["flops_evaluation"] == pytest.approx(count.flops, rel=0.02)
        assert found.metrics["flops_picture"] == 8 * found.metrics["flops_evaluation"]
        assert 0 < found.metrics["seconds_evaluation"] < found.metrics["seconds_picture"]
        assert found.data["pictures"] == 3 and found.data["machine"]["threads"] == 1
        finite(found.data)


def test_a_cascade_is_refused(tmp_path):
    job = evaluate_kit.job(Store.open(str(tmp_path)))
    given = {"source": job.source(), "scoring": job.scoring, "seed": 0, "batch": 4}
    with pytest.raises(ValueError, match="stage16 enlarges the pictures of stage8; probe stage8"):
        Model.load(job.store, job.stages, job.weights, **given)


def test_conditioning_of_pairs_is_of_other_captions():
    of = model(count=11, batch=4)
    pairs = of.pairs(64)
    assert [(a.first, b.first) for a, b in pairs] == [(0, 5), (4, 9)]
    first = (
        Conditioning.cat([a.cond for a, _ in pairs]),
        Conditioning.cat([b.cond for _, b in pairs]),
    )
    whole = of.source.read(range(10))[0]
    for cond, rows in zip(first, (slice(0, 5), slice(5, 10)), strict=True):
        assert torch.equal(cond.pooled["clip_text_pooled"], whole.pooled["clip_text_pooled"][rows])
