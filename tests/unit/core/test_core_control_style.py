"""Style references replace the image embedding; prompts switch at the right step."""

import pytest
import torch
from torch.nn.functional import normalize

from ediffi_core.control import sigma_after, switched, with_style
from ediffi_core.noise import edm_grid
from ediffi_core.precond import Denoiser
from ediffi_core.sampling import SOLVERS


@pytest.fixture
def references():
    return torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


def test_one_reference_is_every_picture_s_image_embedding(references, make_cond):
    cond = make_cond()
    styled = with_style(cond, references[:1])
    for row in styled.pooled["clip_image"]:
        torch.testing.assert_close(row, normalize(references[0], dim=0))
    assert styled.sequences is cond.sequences
    assert torch.equal(styled.pooled["clip_text_pooled"], cond.pooled["clip_text_pooled"])
    assert not torch.equal(cond.pooled["clip_image"], styled.pooled["clip_image"])


def test_references_mix_by_weight_at_unit_length(references, make_cond):
    def mixed(weights=None):
        return with_style(make_cond(), references, weights).pooled["clip_image"][0]

    torch.testing.assert_close(mixed(), normalize(references.mean(dim=0), dim=0))
    torch.testing.assert_close(mixed([3, 1]), mixed([0.75, 0.25]))
    torch.testing.assert_close(
        mixed([3, 1]), normalize(0.75 * references[0] + 0.25 * references[1], dim=0)
    )
    torch.testing.assert_close(mixed([0, 1]), normalize(references[1], dim=0))
    assert mixed([2, 5]).norm() == pytest.approx(1)


def test_another_default_dtype_rounds_no_weight(references, make_cond, request):
    cond = make_cond()
    request.getfixturevalue("bfloat16_by_default")
    mixed = with_style(cond, references, [0.3, 0.7]).pooled["clip_image"][0]
    expected = normalize(0.3 * references[0] + 0.7 * references[1], dim=0)
    torch.testing.assert_close(mixed, expected)


def test_a_style_is_seen_by_the_network(references, make_net, make_cond):
    denoiser, sigma = Denoiser(make_net()), torch.tensor(1.0, dtype=torch.float64)
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    a, b = (denoiser(x, sigma, with_style(make_cond(), references[[i]])) for i in range(2))
    assert (a - b).abs().amax(dim=(1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize(
    ("rows", "weights", "name", "text"),
    [
        (2, [1.0], "clip_image", r"2 style references need as many weights.*\[1.0\]"),
        (2, [1.0, -1.0], "clip_image", "with a positive sum"),
        (0, None, "clip_image", "0 style references"),
        (2, None, "dino", r"do not fit dino: .*'clip_image': 6"),
    ],
)
def test_styles_that_cannot_be_are_refused(rows, weights, name, text, references, make_cond):
    with pytest.raises(ValueError, match=text):
        with_style(make_cond(), references[:rows], weights, name=name)


def test_a_reference_of_another_encoder_is_refused(make_cond):
    for shape in ((2, 7), (6,)):
        with pytest.raises(ValueError, match="do not fit clip_image"):
            with_style(make_cond(), torch.ones(shape))


@pytest.mark.parametrize(("fraction", "steps_before"), [(0, 0), (0.4, 10), (0.93, 23), (1, 25)])
@pytest.mark.parametrize("solver", ["euler", "deis3", "dpm++2m"])
def test_the_prompt_changes_after_a_fraction_of_the_steps(solver, fraction, steps_before):
    grid, asked = edm_grid(25), []

    def stamp(name):
        def denoise(x, sigma):
            asked.append(name)
            return 0.5 * x

        return denoise

    change = sigma_after(grid, fraction)
    SOLVERS[solver](switched(stamp("old"), stamp("new"), change), torch.ones(1), grid)
    assert asked == ["old"] * steps_before + ["new"] * (25 - steps_before)


@pytest.mark.parametrize("fraction", [-0.1, 1.01])
def test_a_fraction_is_a_fraction(fraction):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        sigma_after(edm_grid(5), fraction)
