"""What a trained cascade can be asked for besides prompts, with encoders in the real formats."""

import numpy as np
import pytest
import torch
from embed_kit import write_encoders
from PIL import Image

from ediffi_core import cascade
from ediffi_core.cascade import CascadeStage
from ediffi_core.control import Phrase
from ediffi_core.encoders import CLIP, T5, embedding_specs
from ediffi_core.precond import Denoiser
from ediffi_core.unet import UNet, UNetConfig
from pipelines.models.controls import default_sigma
from pipelines.models.text_to_image import TextToImage
from pipelines.spec.sampling import Sampling, SamplingWarning

PROMPTS = ["red cat above two", "blue dog"]
SIDE = 16
SPLIT = SIDE // 2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    folders = write_encoders(tmp_path_factory.mktemp("encoders"))
    t5, clip = T5(folders["t5"]), CLIP(folders["clip"])
    specs = embedding_specs(t5.dim, clip.text_dim, clip.dim)
    stages, own = [], {}
    for name, side in (("base", SPLIT), ("sr16", SIDE)):
        config = UNetConfig(
            resolution=side,
            channels=8,
            channel_mult=(1, 2),
            blocks=1,
            layout="adm" if name == "base" else "efficient",
            cross_attention=(side // 2,),
            head_channels=8,
            token_dim=12,
            embeddings=specs,
            low_res=name != "base",
        )
        net = UNet(config).eval().requires_grad_(False)
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape))
        own[name] = Sampling(steps=3, guidance=1.0)
        stages.append(
            CascadeStage(name=name, denoiser=Denoiser(net), resolution=side, steps=3, guidance=1.0)
        )
    return TextToImage(stages, t5, clip, torch.device("cpu"), own)


def image(seed=0, size=(SIDE, SIDE)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    return Image.fromarray(pixels)


def right_half(size=(SIDE, SIDE)):
    mask = Image.new("L", size, 0)
    mask.paste(255, (size[0] // 2, 0, *size))
    return mask


@pytest.fixture(scope="module")
def plain(model):
    return model.sample(PROMPTS, seed=[1, 2])


def test_another_default_dtype_changes_no_picture(model, plain, bfloat16_by_default):
    assert (model.sample(PROMPTS, seed=[1, 2]) == plain).all()


def differ(a, b):
    """Whether every picture differs."""
    return (np.abs(a.astype(int) - b) > 3).any(axis=(1, 2, 3)).all()


def close(a, b):
    return np.abs(a.astype(int) - b).max() <= 1


def test_a_negative_prompt_for_all_or_for_each(model, plain):
    for_all = model.sample(PROMPTS, seed=[1, 2], negative="green seven beside a dog")
    each = model.sample(PROMPTS, seed=[1, 2], negative=["green seven beside a dog", ""])
    assert differ(for_all, plain)
    assert close(each[:1], for_all[:1]) and close(each[1:], plain[1:])
    assert np.array_equal(model.sample(PROMPTS, seed=[1, 2], negative=""), plain)


def test_a_picture_to_start_from_has_a_default_noise_level(model, plain):
    found = model.sample(PROMPTS, seed=[1, 2], image=image())
    told = model.sample(PROMPTS, seed=[1, 2], image=image(), sigma=default_sigma(SPLIT))
    assert np.array_equal(found, told) and differ(found, plain)
    assert differ(found, model.sample(PROMPTS, seed=[1, 2], image=image(1)))


def test_as_many_pictures_are_drawn_at_once_as_asked_for(model, monkeypatch):
    rows = []
    drawn = cascade.sample

    def counted(stages, cond, **options):
        rows.append(len(cond))
        return drawn(stages, cond, **options)

    monkeypatch.setattr(cascade, "sample", counted)
    one = {"seed": 3, "sampling": {"steps": 1, "sigma_max": 5.0}, "up_to": "base"}
    model.sample(["a"] * 66, **one, batch=66)
    model.sample(["a"] * 3, **one, batch=2)
    assert rows == [66, 2, 1]


def test_the_centre_square_of_a_picture_is_used(model):
    wide = image(size=(SIDE + 8, SIDE))
    square = wide.crop((4, 0, SIDE + 4, SIDE))
    a, b = (model.sample(PROMPTS, seed=[1, 2], image=p, sigma=2.0) for p in (wide, square))
    assert np.array_equal(a, b)


@pytest.mark.parametrize("sigma", [None, 3.0])
def test_a_dark_part_of_the_mask_keeps_the_picture_to_the_byte(sigma, model, plain):
    found = model.sample(PROMPTS, seed=[1, 2], image=image(), mask=right_half(), sigma=sigma)
    pixels = np.asarray(image())
    assert (found[:, :, :SPLIT] == pixels[:, :SPLIT]).all()
    assert differ(found[:, :, SPLIT + 1 :], np.stack([pixels[:, SPLIT + 1 :]] * 2))


def test_a_stage_alone_keeps_the_same_picture(model):
    """The base of a whole cascade is that of the base alone."""
    options = {"seed": [1, 2], "image": image(), "mask": right_half(), "up_to": "base"}
    found = model.sample(PROMPTS, **options)
    small = np.asarray(image().resize((SPLIT, SPLIT), Image.Resampling.BICUBIC))
    kept = (slice(None), slice(SPLIT // 2))
    assert (np.abs(found[:, :, : SPLIT // 2].astype(int) - small[kept]) <= 2).all()


def test_variations_are_of_the_picture_and_need_no_prompt(model):
    a, b = (model.sample(["", ""], seed=[1, 2], variation=image(s)) for s in (0, 1))
    assert differ(a, b)
    with_text = model.sample(PROMPTS, seed=[1, 2], variation=image())
    assert np.array_equal(with_text, model.sample(PROMPTS, seed=[1, 2], style=[image()]))
    assert differ(a, with_text)


def test_styles_mix_by_weight(model):
    both = [image(0), image(1)]
    first = model.sample(PROMPTS, seed=[1, 2], style=both[:1])
    assert close(model.sample(PROMPTS, seed=[1, 2], style=both, style_weights=[2, 0]), first)
    assert differ(model.sample(PROMPTS, seed=[1, 2], style=both, style_weights=[1, 3]), first)


@pytest.mark.filterwarnings("ignore::pipelines.spec.sampling.SamplingWarning")
def test_a_second_prompt_takes_over(model):
    options = {"seed": [1, 2], "negative": "dog", "sampling": {"steps": 4, "sigma_max": 5.0}}
    second = "seven beside green two"
    start, midway, end = (
        model.sample(PROMPTS, then=second, switch=switch, **options) for switch in (0, 0.5, 1)
    )
    assert close(start, model.sample([second] * 2, **options))
    assert close(end, model.sample(PROMPTS, **options))
    assert differ(midway, start) and differ(midway, end)


def test_a_phrase_is_painted_in_the_prompt_that_has_it(model):
    mask = torch.zeros(8, 8)
    mask[:, 4:] = 1
    seven = [[Phrase("seven", mask, 5.0)], []]
    options = {"seed": [1, 2], "then": "seven beside green", "switch_sigma": 10.0}
    without, painted = (model.sample(PROMPTS, **options, paint=p) for p in (None, seven))
    assert differ(painted[:1], without[:1]) and close(painted[1:], without[1:])
    with pytest.raises(ValueError, match="phrase 'nine' is not in the prompt"):
        model.sample(PROMPTS, **options, paint=[[Phrase("nine", mask)], []])
    with pytest.raises(ValueError, match="`paint` has phrases for 1 prompts, but there are 2"):
        model.sample(PROMPTS, **options, paint=seven[:1])


def test_a_picture_with_everything_depends_on_its_own_row_alone(model):
    shared = {
        "image": image(),
        "mask": right_half(),
        "sigma": 5.0,
        "style": [image(1)],
        "switch": 0.34,
        "sampling": {"solver": "heun", "threshold": "dynamic"},
    }
    negative, then = ["dog", "green seven beside a cat"], ["two", "a seven above a blue dog"]
    together = model.sample(PROMPTS, seed=[1, 2], negative=negative, then=then, **shared)
    for i in range(2):
        row = slice(i, i + 1)
        alone = model.sample(
            PROMPTS[row], seed=[1 + i], negative=negative[row], then=then[row], **shared
        )
        assert close(alone, together[row])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 1.0}, "`sigma` is given without `image`"),
        ({"image": image(), "sigma": 0.0}, "`sigma` is 0.0; write a noise level above 0.002"),
        ({"image": image(), "sigma": 81.0}, "`sigma` is 81.0; write .* up to 80.0"),
        ({"image": image(), "sigma": -1.0}, "`sigma` is -1.0"),
        ({"mask": right_half()}, "`mask` is given without `image`"),
        (
            {"image": image(), "mask": right_half((SIDE, 8))},
            "`mask` has 16×8 pixels and `image` 16×16",
        ),
        (
            {"image": image(), "mask": Image.new("L", (SIDE, SIDE), 90)},
            "`mask` is dark everywhere, which keeps the whole picture",
        ),
        ({"style": [image()], "variation": image()}, "`style` and `variation` both take"),
        ({"style_weights": [1.0]}, "`style_weights` is given without `style`"),
        (
            {"style": [image()], "style_weights": [1.0, 2.0]},
            r"`style_weights` are \[1.0, 2.0\] for 1 style picture; write one number each",
        ),
        ({"style": [image()], "style_weights": [float("nan")]}, "`style_weights` are"),
        ({"switch": 0.5}, "`switch` is given without `then`"),
        ({"then": "a cat"}, "needs `switch`, .* got neither"),
        ({"then": "a cat", "switch": 0.5, "switch_sigma": 1.0}, "got both"),
        ({"then": "a cat", "switch": 2}, "`switch` is 2; write a fraction"),
        ({"then": ["a", "b", "c"], "switch": 0.5}, "`then` has 3 texts for 2 prompts"),
        ({"negative": []}, "`negative` has 0 texts for 2 prompts; give 1 or 2"),
    ],
)
def test_what_cannot_be_asked_is_one_line(options, message, model):
    with pytest.raises(ValueError, match=message) as refused:
        model.sample(PROMPTS, **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"negative": "dog", "sampling": {"guidance": 0, "sr16.guidance": 0}},
            "`negative` has no effect without guidance",
        ),
        (
            {"negative": "dog", "sampling": {"guidance": 0, "sr16.guidance": 0}, "up_to": "base"},
            "`negative` has no effect without guidance",
        ),
        ({"then": "dog", "switch": 1.0}, "`then` has no effect: the switch comes after"),
        ({"then": "dog", "switch_sigma": 0.001}, "`then` has no effect"),
        ({"then": "dog", "switch_sigma": 99.0}, "the first prompt has no effect"),
        (
            {"image": image(), "mask": Image.new("L", (SIDE, SIDE), 255)},
            "`mask` has no effect: it is bright everywhere",
        ),
    ],
)
def test_what_has_no_effect_warns(options, message, model):
    with pytest.warns(SamplingWarning, match=message):
        model.sample(PROMPTS, **options)
