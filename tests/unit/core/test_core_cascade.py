"""Stages pass images on; tiles equal the whole image for a finite receptive field."""

import dataclasses

import pytest
import torch

from ediffi_core import draws
from ediffi_core.cascade import CascadeStage, Tiled, sample
from ediffi_core.conditioning import Paint
from ediffi_core.guidance import guided
from ediffi_core.invariant import RowInvariant, padded
from ediffi_core.noise import edm_grid
from ediffi_core.precond import Denoiser
from ediffi_core.sampling import SOLVERS

SIGMA = torch.tensor(0.7, dtype=torch.float64)


@pytest.fixture
def small(efficient):
    """One level: a receptive field of less than 16 pixels on each side."""
    return dataclasses.replace(efficient, channel_mult=(1,), blocks=1, cross_attention=(8,))


@pytest.fixture
def denoiser(small, make_net):
    return Denoiser(make_net(config=small))


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def reach(denoiser, cond):
    """Distance from an output pixel to the farthest input that it depends on."""
    x = noise(1, 3, 64, 64).requires_grad_()
    denoiser(x, SIGMA, cond)[..., 32, 32].sum().backward()
    rows, columns = x.grad.abs().amax(dim=(0, 1)).nonzero().T
    return int(torch.cat([rows, columns]).sub(32).abs().max())


def test_the_receptive_field_is_the_overlap_at_most(denoiser, make_cond):
    """Precondition of the tests below."""
    assert 8 < reach(denoiser, make_cond(1, low_res=16)) <= 16


@pytest.mark.parametrize("tile", [40, 48, 64])
@pytest.mark.parametrize("sides", [(64, 64), (80, 80), (46, 100), (32, 90)])
def test_tiles_are_the_whole_picture(tile, sides, denoiser, make_cond):
    x, cond = noise(2, 3, *sides), make_cond(2, low_res=12)
    found = Tiled(denoiser, tile, 16)(x, SIGMA, cond)
    torch.testing.assert_close(found, denoiser(x, SIGMA, cond), rtol=1e-4, atol=1e-5)


def test_tiles_of_differences_are_the_whole_picture(small, make_net, make_cond):
    denoiser = Denoiser(make_net(config=small), residual=True)
    x, cond = noise(2, 3, 80, 80), make_cond(2, low_res=20)
    found = Tiled(denoiser, 48, 16)(x, SIGMA, cond)
    torch.testing.assert_close(found, denoiser(x, SIGMA, cond), rtol=1e-4, atol=1e-5)


def test_too_small_an_overlap_shows(denoiser, make_cond):
    x, cond = noise(1, 3, 80, 80), make_cond(1, low_res=20)
    found = Tiled(denoiser, 40, 2)(x, SIGMA, cond)
    assert (found - denoiser(x, SIGMA, cond)).abs().max() > 1e-3


class Recorded:
    """A denoiser that records its inputs."""

    def __init__(self, denoiser=None):
        self.denoiser = denoiser or (lambda x, sigma, cond: x / (1 + sigma.float() ** 2))
        self.shapes, self.conds = [], []

    def __call__(self, x, sigma, cond):
        self.shapes.append(tuple(x.shape))
        self.conds.append(cond)
        return self.denoiser(x, sigma, cond)


@pytest.mark.parametrize("side", [20, 40, 41, 64, 100, 256])
def test_no_tile_is_larger_than_the_tile(side, make_cond):
    recorded = Recorded()
    out = Tiled(recorded, 40, 16)(noise(1, 3, side, side), SIGMA, make_cond(1, low_res=10))
    assert out.shape == (1, 3, side, side)
    assert set(recorded.shapes) == {(1, 3, min(side, 40), min(side, 40))}
    assert all(c.low_res.shape == s for c, s in zip(recorded.conds, recorded.shapes, strict=True))


@pytest.mark.parametrize(("tile", "overlap"), [(40, 0), (40, 16), (40, 18), (8, 2)])
@pytest.mark.parametrize("side", [41, 80, 97])
def test_every_pixel_is_kept_once_with_its_margin(side, tile, overlap):
    cuts = list(Tiled(Recorded(), tile, overlap).tiles(side))
    assert [i for kept, _ in cuts for i in range(kept.start, kept.stop)] == list(range(side))
    for kept, outer in cuts:
        assert outer.stop - outer.start == tile
        assert 0 <= outer.start <= kept.start
        assert kept.stop <= outer.stop <= side
        assert kept.start - outer.start >= overlap or outer.start == 0
        assert outer.stop - kept.stop >= overlap or outer.stop == side


def test_tiles_that_are_all_margin_are_refused():
    for tile, overlap in ((32, 16), (32, -1)):
        with pytest.raises(ValueError, match=f"overlap {overlap} on both sides"):
            Tiled(Recorded(), tile, overlap)


def test_painting_in_tiles_is_refused(make_cond):
    cond = dataclasses.replace(make_cond(1), paint=Paint({"t5": torch.ones(1, 5, 4, 4)}))
    with pytest.raises(ValueError, match="leave it out of tiled stages"):
        Tiled(Recorded(), 40, 16)(noise(1, 3, 64, 64), SIGMA, cond)


def stages(base, sr, **options):
    return [
        CascadeStage(name="base64", denoiser=base, resolution=8, steps=4, guidance=2.0),
        CascadeStage(name="sr256", denoiser=sr, resolution=48, steps=3, **options),
    ]


def test_each_stage_starts_from_the_one_before(make_cond):
    base, sr, told = Recorded(), Recorded(), []
    cond = dataclasses.replace(make_cond(2), paint=Paint({"t5": torch.ones(2, 5, 4, 4)}))

    def callback(name):
        return lambda info: told.append((name, info["step"]))

    found = dict(sample(stages(base, sr, guidance=1.0), cond, seed=0, callback=callback))
    assert list(found) == ["base64", "sr256"]
    assert [v.shape for v in found.values()] == [(2, 3, 8, 8), (2, 3, 48, 48)]
    assert all(v.abs().max() <= 1 for v in found.values())
    assert told == [("base64", i) for i in range(4)] + [("sr256", i) for i in range(3)]
    assert all(c.low_res is None and c.paint is not None for c in base.conds)
    for given in sr.conds:  # both halves of guidance get the same low-resolution images
        assert torch.equal(given.low_res, torch.cat([found["base64"]] * 2))
        assert given.paint is None
    assert cond.low_res is None


def test_a_stage_is_its_solver_from_its_own_noise(make_net, make_cond):
    """Reference: σ_max times noise of (seed, stage, number), then guidance and the solver."""
    denoiser, cond = Denoiser(make_net()), make_cond(2)
    stage = CascadeStage(
        name="base", denoiser=denoiser, resolution=8, steps=5, solver="heun", sigma_max=20
    )
    ((_, found),) = sample([stage], cond, seed=3, first=7)
    x = 20 * draws.normal(3, "sample/base", torch.tensor([7, 8]), (3, 8, 8))
    with RowInvariant():
        expected = SOLVERS["heun"](guided(denoiser, padded(cond), 0), x, edm_grid(5, sigma_max=20))
    assert torch.equal(found, expected.clamp(-1, 1))


def test_the_first_stage_may_start_from_given_pictures(denoiser, make_cond):
    cond = make_cond(2, low_res=12)
    stage = CascadeStage(name="sr", denoiser=Recorded(denoiser), resolution=48, steps=2)
    list(sample([stage], cond, seed=0))
    assert all(c.low_res is cond.low_res for c in stage.denoiser.conds)


def test_a_picture_does_not_depend_on_its_batch(denoiser, make_net, make_cond):
    both, cond = stages(Denoiser(make_net()), denoiser, tile=40, overlap=16), make_cond(3)
    together = dict(sample(both, cond, seed=0))
    for i in range(3):
        for name, found in sample(both, cond[i : i + 1], seed=0, first=i):
            assert torch.equal(found, together[name][[i]])
    assert (together["sr256"][0] - together["sr256"][1]).abs().max() > 0.1


def test_a_row_with_its_own_seed_is_that_seeds_first_picture(denoiser, make_net, make_cond):
    both, cond = stages(Denoiser(make_net()), denoiser, tile=40, overlap=16), make_cond(3)
    together = dict(sample(both, cond, seed=[5, 0, 5]))
    for i, seed in enumerate([5, 0, 5]):
        for name, found in sample(both, cond[i : i + 1], seed=seed):
            assert torch.equal(found, together[name][[i]])


def test_as_many_seeds_as_rows(make_cond):
    with pytest.raises(ValueError, match="2 seeds for 3 pictures"):
        dict(sample(stages(Recorded(), Recorded()), make_cond(3), seed=[1, 2]))


def test_tiled_stages_draw_what_whole_ones_do(denoiser, make_net, make_cond):
    base = Denoiser(make_net())
    whole, tiled = (
        dict(sample(stages(base, denoiser, tile=tile, overlap=16), make_cond(2), seed=0))
        for tile in (None, 40)
    )
    assert torch.equal(whole["base64"], tiled["base64"])
    torch.testing.assert_close(whole["sr256"], tiled["sr256"], rtol=0, atol=1e-3)


def test_another_seed_is_another_picture(make_cond):
    a, b = (dict(sample(stages(Recorded(), Recorded()), make_cond(1), seed=s)) for s in (0, 1))
    for name in a:
        assert (a[name] - b[name]).abs().max() > 0.1


def test_an_unknown_solver_is_refused():
    with pytest.raises(ValueError, match="solver 'ddim' is unknown; choose one of euler, heun"):
        CascadeStage(name="base", denoiser=Recorded(), resolution=8, solver="ddim")


@pytest.mark.parametrize("name", ["t5", "clip_text", "clip_text_pooled", "clip_image", "low_res"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_is_named_and_not_drawn_black(name, value, make_cond):
    """Also behind the last token, where a mask of 0 times NaN is NaN."""
    cond = make_cond(3, low_res=8)
    held = {**cond.sequences, **cond.pooled, "low_res": cond.low_res}[name]
    held[1].view(-1)[-1] = value
    assert cond.non_finite_rows() == [(1, name)]
    assert cond[slice(0, 1)].non_finite_rows() == []
    stage = CascadeStage(name="base", denoiser=Recorded(), resolution=8, steps=2)
    with pytest.raises(
        ValueError, match=rf"{name} has values that are not finite in row 5 \(and 0"
    ):
        next(sample([stage], cond, seed=0, first=4))


def test_a_network_that_draws_nan_is_named_with_the_picture(make_cond):
    def overflowing(x, sigma, cond):
        out = x.clone()
        out[2] = torch.inf
        return out

    stage = CascadeStage(name="base", denoiser=overflowing, resolution=8, steps=3)
    with pytest.raises(ValueError, match="stage base drew values that are not finite in row 2"):
        next(sample([stage], make_cond(3), seed=0))
