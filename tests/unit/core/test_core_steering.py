"""Negative prompts, a picture to start from, a part to keep and a second prompt."""

from dataclasses import replace

import pytest
import torch

from ediffi_core import draws
from ediffi_core.cascade import CascadeStage, sample
from ediffi_core.conditioning import Conditioning, Paint
from ediffi_core.control import Control, Keep, Start, Switch
from ediffi_core.ensemble import Ensemble, Expert
from ediffi_core.guidance import dynamic_threshold, guided, per_expert
from ediffi_core.noise import Interval, NoiseDistribution
from ediffi_core.precond import Denoiser
from ediffi_core.sampling import SOLVERS, Churn
from ediffi_core.solver_names import SINGLE_STEP

SIGMA = torch.tensor(0.7, dtype=torch.float64)


@pytest.fixture
def base(make_net):
    """A guided ensemble of two experts with guidance of their own."""
    halves = {"low": Interval(0.0, 0.5), "high": Interval(0.5, 1.0)}
    experts = [Expert(n, i, Denoiser(make_net(k))) for k, (n, i) in enumerate(halves.items())]
    ensemble = Ensemble(experts, NoiseDistribution())
    scale = per_expert(ensemble, {"low": 0.5}, 1.5)
    return CascadeStage(
        name="base", denoiser=ensemble, resolution=8, steps=4, guidance=scale, sigma_max=20.0
    )


@pytest.fixture
def sr(efficient, make_net):
    """A super-resolution stage in tiles."""
    net = Denoiser(make_net(config=efficient), residual=True)
    return CascadeStage(
        name="sr16", denoiser=net, resolution=16, steps=2, guidance=1.0, tile=12, overlap=2
    )


@pytest.fixture
def picture():
    """Not as smooth as what networks draw: every pixel differs."""
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.fixture
def right_half():
    drawn = torch.zeros(1, 1, 16, 16)
    drawn[..., 8:] = 1
    return drawn


def drawn_by(stages, cond, seed=0, **control):
    return dict(sample(stages, cond, seed=seed, control=Control(**control)))


# Negative prompts


def test_the_prompt_as_negative_prompt_gives_the_conditional_result(base, make_cond):
    cond = make_cond()
    plain = drawn_by([replace(base, guidance=0.0)], cond)["base"]
    found = drawn_by([base], cond, negative=make_cond())["base"]
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-4)
    assert (drawn_by([base], cond)["base"] - plain).abs().max() > 0.05


@pytest.mark.parametrize("scale", [-1.0, 2.0])
def test_a_negative_prompt_is_where_guidance_comes_from(scale, make_net, make_cond):
    """Also if it is longer or shorter than the prompt."""
    denoiser, cond, other = Denoiser(make_net()), make_cond(), make_cond(seed=1)
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    a, b = denoiser(x, SIGMA, cond), denoiser(x, SIGMA, other)
    for batched in (True, False):
        found = guided(denoiser, cond, scale, negative=lengthened(other), batched=batched)
        torch.testing.assert_close(found(x, SIGMA), a + scale * (a - b), rtol=1e-4, atol=1e-4)
        found = guided(denoiser, lengthened(cond), scale, negative=other, batched=batched)
        torch.testing.assert_close(found(x, SIGMA), a + scale * (a - b), rtol=1e-4, atol=1e-4)


def lengthened(cond):
    """The same with two more positions of padding."""
    longer = {k: torch.cat([v, v[:, :2] * 0], 1) for k, v in cond.sequences.items()}
    masks = {k: torch.cat([v, v[:, :2] & False], 1) for k, v in cond.masks.items()}
    return replace(cond, sequences=longer, masks=masks)


def test_an_absent_negative_prompt_is_plain_guidance(base, sr, make_cond):
    cond, other = make_cond(), make_cond(seed=1)
    rows = torch.tensor([True, False, True])
    found = drawn_by([base, sr], cond, negative=other.with_absent(rows))
    plain, avoided = drawn_by([base, sr], cond), drawn_by([base, sr], cond, negative=other)
    for name in found:
        torch.testing.assert_close(found[name][rows], plain[name][rows], rtol=0, atol=1e-3)
        torch.testing.assert_close(found[name][1], avoided[name][1], rtol=0, atol=1e-3)
        assert (plain[name] - avoided[name]).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_absent_rows_keep_small_picture_and_paint(make_cond):
    cond = replace(make_cond(low_res=4), paint=Paint({"t5": torch.ones(3, 5, 4, 4)}))
    found = cond.with_absent(torch.tensor([False, True, False]))
    assert found.low_res is cond.low_res and found.paint is cond.paint
    for name in cond.sequences:
        assert not found.masks[name][1].any() and not found.sequences[name][1].any()
        assert torch.equal(found.masks[name][[0, 2]], cond.masks[name][[0, 2]])
    for name in cond.pooled:
        assert not found.pooled[name][1].any()
        assert torch.equal(found.pooled[name][[0, 2]], cond.pooled[name][[0, 2]])


def test_sequences_and_paint_of_unequal_length_stack(make_net, make_cond):
    net, x = make_net(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    a = replace(make_cond(2), paint=Paint({"t5": torch.rand(2, 5, 4, 4)}))
    b = lengthened(make_cond(2, seed=1))
    stacked = Conditioning.cat([a, b])
    assert stacked.sequences["t5"].shape[1] == stacked.paint.maps["t5"].shape[1] == 7
    together = net(torch.cat([x, x]), torch.zeros(4), stacked)
    apart = torch.cat([net(x, torch.zeros(2), part) for part in (a, b)])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


# A picture to start from


def test_the_base_starts_from_the_picture_plus_noise(make_cond, picture):
    seen = []

    def denoiser(x, sigma, cond):
        seen.append((float(sigma), x.clone()))
        return 0 * x

    stage = CascadeStage(name="base", denoiser=denoiser, resolution=16, steps=3, solver="euler")
    drawn_by([stage], make_cond(2), start=Start(picture=picture, sigma=3.0))
    sigma, x = seen[0]
    noise = draws.normal(0, "sample/base", torch.arange(2), (3, 16, 16))
    assert sigma == pytest.approx(3) and len(seen) == 3
    torch.testing.assert_close(x, picture + 3 * noise)


def test_from_the_highest_noise_level_it_is_nearly_text_to_image(base, make_cond, picture):
    """What is left of the picture is σ_max times smaller than the noise."""
    cond, high = make_cond(8), replace(base, sigma_max=2000.0)
    found = drawn_by([high], cond, start=Start(picture=picture, sigma=2000.0))["base"]
    torch.testing.assert_close(found, drawn_by([high], cond)["base"], rtol=0, atol=0.02)


def test_little_noise_leaves_the_picture(make_cond, picture):
    """With the exact denoiser of one picture's distribution around its mean."""
    std = 0.5
    stage = CascadeStage(
        name="base",
        denoiser=lambda x, sigma, cond: x * std**2 / (std**2 + float(sigma) ** 2),
        resolution=16,
        steps=20,
    )
    apart = [
        float(
            (
                drawn_by([stage], make_cond(1), start=Start(picture=picture, sigma=s))["base"]
                - picture
            )
            .abs()
            .mean()
        )
        for s in (0.01, 0.3, 5.0)
    ]
    assert apart[0] < 0.02 < apart[1] < apart[2]


@pytest.mark.parametrize("sigma", [0.002, 0.0, -1.0, 20.1, float("nan")])
def test_a_first_noise_level_outside_the_grid_is_refused(sigma, base, make_cond, picture):
    with pytest.raises(ValueError, match=rf"`sigma` is {sigma}; write .* above 0.002 .* 20.0"):
        drawn_by([base], make_cond(), start=Start(picture=picture, sigma=sigma))


# A part to keep


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("sigma", [None, 2.0])
def test_the_kept_part_is_the_picture_with_every_solver(
    solver, sigma, base, sr, make_cond, picture, right_half
):
    def churn(noise):
        return Churn(amount=10.0, noise=noise)

    stage = replace(base, solver=solver, threshold=dynamic_threshold())
    stage = replace(stage, churn=churn if solver in SINGLE_STEP else None)
    keep = Keep(picture=picture, drawn=right_half)
    start = None if sigma is None else Start(picture=picture, sigma=sigma)
    found = drawn_by([stage, sr], make_cond(2), keep=keep, start=start)
    for name, side in (("base", 8), ("sr16", 16)):
        at = keep.at(side)
        kept = (at.drawn == 0).expand(2, 3, -1, -1)
        assert kept.float().mean() > 0.4
        assert torch.equal(found[name][kept], at.picture.expand(2, -1, -1, -1)[kept])
    plain = drawn_by([stage, sr], make_cond(2), start=start)["sr16"]
    assert (found["sr16"] - picture)[..., 10:].abs().mean() > 0.05
    assert (found["sr16"] - plain)[..., :8].abs().mean() > 0.05
    assert torch.equal(found["sr16"][..., :8], picture[..., :8].expand(2, -1, -1, -1))


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_networks_see_the_kept_part_as_the_picture_plus_noise(
    solver, make_cond, picture, right_half
):
    """As in training: x = picture + σ ε at every noise level."""
    seen = []

    def denoiser(x, sigma, cond):
        seen.append((float(sigma), x[..., :8].clone()))
        return torch.sin(x)

    stage = CascadeStage(name="base", denoiser=denoiser, resolution=16, steps=6, solver=solver)
    drawn_by([stage], make_cond(1), keep=Keep(picture=picture, drawn=right_half))
    noise = draws.normal(0, "sample/base", torch.arange(1), (3, 16, 16))
    for sigma, x in seen:
        expected = (picture + sigma * noise)[..., :8]
        torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)


def test_the_seam_is_soft_and_inside_the_drawn_part(picture, right_half):
    row = Keep(picture=picture, drawn=right_half).at(16).drawn[0, 0, 3]
    assert not row[:8].any() and row[9:].eq(1).all()
    assert 0 < row[8] < 1


def test_all_drawn_is_text_to_image(base, make_cond, picture):
    keep = Keep(picture=picture, drawn=torch.ones(1, 1, 16, 16))
    plain = drawn_by([base], make_cond())["base"]
    assert torch.equal(drawn_by([base], make_cond(), keep=keep)["base"], plain)


def test_a_mask_of_another_size_is_refused(picture):
    for shape in ((1, 1, 8, 8), (1, 16, 16), (1, 3, 16, 16)):
        with pytest.raises(ValueError, match="does not fit pictures of shape"):
            Keep(picture=picture, drawn=torch.ones(shape))
    with pytest.raises(ValueError, match="a picture of shape"):
        Start(picture=picture[0], sigma=1.0)


# A second prompt


@pytest.mark.parametrize("solver", ["heun", "deis3"])
@pytest.mark.parametrize(("at", "which"), [(0, 1), (1, 0)])
def test_a_switch_at_an_end_is_one_prompt_through_all_stages(
    at, which, solver, base, sr, make_cond
):
    prompts = [make_cond(), lengthened(make_cond(seed=1))]
    churn = (lambda noise: Churn(amount=10.0, noise=noise)) if solver == "heun" else None
    stages = [replace(base, solver=solver, churn=churn), sr]
    others = {"negative": make_cond(seed=2)}
    found = drawn_by(stages, prompts[0], switch=Switch(cond=prompts[1], fraction=at), **others)
    expected = drawn_by(stages, prompts[which], **others)
    for name in expected:
        assert torch.equal(found[name], expected[name])


def test_a_switch_midway_is_neither_prompt(base, sr, make_cond):
    first, second = make_cond(), make_cond(seed=1)
    sigmas = base.sigmas()
    found = [
        drawn_by([base, sr], first, switch=Switch(cond=second, **how))
        for how in ({"fraction": 0.5}, {"sigma": float(sigmas[2])})
    ]
    for name in found[0]:
        assert torch.equal(found[0][name], found[1][name])
        for prompt in (first, second):
            assert (found[0][name] - drawn_by([base, sr], prompt)[name]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("solver", "amount"), [*((s, 0.0) for s in SOLVERS), *((s, 6.0) for s in SINGLE_STEP)]
)
@pytest.mark.parametrize(("how", "at"), [({"fraction": 0.5}, 3), ({"sigma": 3.0}, 3)])
def test_a_switch_is_for_good_and_at_the_same_step_with_churn(how, at, solver, amount, make_cond):
    """Churn raises the noise level again, but brings no first prompt back."""
    first, second = make_cond(), make_cond(seed=1)
    seen, done = [], []

    def denoise(x, sigma, cond):
        seen.append(torch.equal(cond.pooled["clip_image"], second.pooled["clip_image"]))
        return x * 0.1

    stage = CascadeStage(
        name="base",
        denoiser=denoise,
        resolution=8,
        steps=6,
        solver=solver,
        churn=(lambda noise: Churn(amount=amount, noise=noise, sigma_max=99.0)) if amount else None,
    )
    dict(
        sample(
            [stage],
            first,
            seed=0,
            control=Control(switch=Switch(cond=second, **how)),
            callback=lambda name: lambda state: done.append(len(seen)),
        )
    )
    assert len(done) == 6 and seen == sorted(seen)
    starts = [0, *done[:-1]]
    assert [seen[i] for i in starts] == [step >= at for step in range(6)]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "got neither"),
        ({"fraction": 0.5, "sigma": 1.0}, "got both"),
        ({"fraction": 1.5}, "`switch` is 1.5; write a fraction"),
        ({"sigma": -1.0}, "`switch_sigma` is -1.0; write a noise level above 0"),
        ({"sigma": float("nan")}, "`switch_sigma` is nan"),
    ],
)
def test_a_switch_happens_at_one_place(how, message, make_cond):
    with pytest.raises(ValueError, match=message):
        Switch(cond=make_cond(), **how)


# All of them together


def test_a_picture_depends_on_its_own_row_alone(base, sr, make_cond, picture, right_half):
    cond, seeds = make_cond(3), [4, 9, 4]
    first = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(6)) * 2 - 1
    control = Control(
        negative=lengthened(make_cond(3, seed=1)),
        switch=Switch(cond=make_cond(3, seed=2), fraction=0.5),
        start=Start(picture=first, sigma=5.0),
        keep=Keep(picture=picture, drawn=right_half),
    )
    together = dict(sample([base, sr], cond, seed=seeds, control=control))
    for i in range(3):
        row = slice(i, i + 1)
        for name, found in sample([base, sr], cond[row], seed=[seeds[i]], control=control[row]):
            torch.testing.assert_close(found, together[name][row], rtol=0, atol=1e-3)


def test_as_many_rows_as_images(base, make_cond, picture):
    for control, message in (
        ({"negative": make_cond(2)}, "a negative prompt for 2 images, but 3 are sampled"),
        ({"switch": Switch(cond=make_cond(2), fraction=0.5)}, "a second prompt for 2 images"),
        ({"start": Start(picture=picture.expand(2, -1, -1, -1), sigma=1.0)}, "2 pictures for 3"),
    ):
        with pytest.raises(ValueError, match=message):
            drawn_by([base], make_cond(3), **control)


def test_a_negative_prompt_that_is_not_finite_is_named(base, make_cond):
    broken = make_cond(3)
    broken.pooled["clip_image"][1] = torch.nan
    with pytest.raises(ValueError, match=r"clip_image of a negative prompt .* not finite in row 1"):
        drawn_by([base], make_cond(3), negative=broken)
