"""An exported folder as a pipeline of diffusers: it draws what the ensemble of the store draws."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from fake_gpu import FakeGPU

from pipelines.models.text_to_image import TextToImage

pytestmark = pytest.mark.slow  # diffusers takes seconds to import

PROMPTS = ["a frog", "a rocket"]


@pytest.fixture(scope="module")
def ensemble(manifest):
    return TextToImage.load(manifest)


@pytest.fixture(scope="module")
def loaded(exported):
    return load(exported)


@pytest.fixture
def pipe(loaded):
    loaded.to(torch.float32)
    return loaded


def load(folder, **options):
    from ediffi_core.diffusers_pipeline import EdiffiPipeline

    pipe = EdiffiPipeline.from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixels(images):
    return np.stack([np.asarray(image) for image in images])


def test_it_draws_the_pixels_of_the_ensemble(pipe, ensemble):
    found = pipe(PROMPTS, seed=7).images
    assert [image.size for image in found] == [(16, 16)] * 2
    assert np.array_equal(pixels(found), ensemble.sample(PROMPTS, seed=7))
    assert pixels(found).std() > 20


def test_a_seed_each_and_several_pictures_of_a_prompt(pipe, ensemble):
    several = pipe("a frog", num_images_per_prompt=3, seed=[5, 6, 5]).images
    assert np.array_equal(pixels(several), ensemble.sample(["a frog"] * 3, seed=[5, 6, 5]))
    two = pipe(PROMPTS, num_images_per_prompt=2, seed=1, stage="base").images
    prompts = ["a frog", "a frog", "a rocket", "a rocket"]
    assert np.array_equal(pixels(two), ensemble.sample(prompts, seed=1, up_to="base"))


def test_its_options_are_the_ensemble_s(pipe, ensemble):
    found = pipe(
        PROMPTS,
        negative_prompt=["a rocket", ""],
        guidance_scale=4.0,
        num_inference_steps=3,
        sampling={"sr16.steps": 5, "sr16.guidance": 1.0, "threshold": "dynamic"},
        seed=2,
    ).images
    expected = ensemble.sample(
        PROMPTS,
        negative=["a rocket", ""],
        sampling={
            "guidance": 3.0,
            "steps": 3,
            "sr16.steps": 5,
            "sr16.guidance": 1.0,
            "threshold": "dynamic",
        },
        seed=2,
    )
    assert np.array_equal(pixels(found), expected)
    plain = pipe(PROMPTS, guidance_scale=4.0, num_inference_steps=3, seed=2).images
    assert not np.array_equal(pixels(plain), expected)


def test_the_output_types_agree(pipe):
    def images(kind):
        return pipe(PROMPTS, seed=3, output_type=kind, return_dict=False)[0]

    array, tensor, pictures = images("np"), images("pt"), images("pil")
    assert array.shape == (2, 16, 16, 3) and array.dtype == np.float32
    assert tensor.shape == (2, 3, 16, 16) and tensor.min() >= 0 and tensor.max() <= 1
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert np.abs(array * 255 - pixels(pictures)).max() <= 0.51


def test_a_generator_draws_the_seeds(pipe):
    def two(generator):
        return [pixels(pipe("a frog", generator=generator).images) for _ in range(2)]

    first, second = two(torch.Generator().manual_seed(0))
    again, _ = two(torch.Generator().manual_seed(0))
    assert np.array_equal(first, again) and not np.array_equal(first, second)
    each = [torch.Generator().manual_seed(s) for s in (1, 2, 1)]
    a, b, c = pixels(pipe("a frog", num_images_per_prompt=3, generator=each).images)
    assert np.array_equal(a, c) and not np.array_equal(a, b)


def test_a_callback_sees_every_step_and_may_change_the_picture(pipe):
    seen = []

    def look(pipeline, step, sigma, tensors):
        assert pipeline is pipe and tensors["latents"].shape == tensors["denoised"].shape
        seen.append((tensors["stage"], step, sigma))

    before = pixels(pipe("a frog", seed=0, callback_on_step_end=look).images)
    assert [(stage, step) for stage, step, _ in seen] == [
        (stage, step) for stage in ("base", "sr16") for step in range(4)
    ]
    assert seen[0][2] == 80 and seen[3][2] == pytest.approx(0.002)

    def brighten(pipeline, step, sigma, tensors):
        last = tensors["stage"] == "sr16" and step == 3
        return {"latents": torch.ones_like(tensors["latents"])} if last else {}

    after = pixels(pipe("a frog", seed=0, callback_on_step_end=brighten).images)
    assert (after == 255).all() and not (before == 255).all()


def test_the_progress_bar_counts_the_steps_of_all_stages(pipe, capsys):
    pipe.set_progress_bar_config(disable=False, ascii=True)
    try:
        pipe("a frog", seed=0)
    finally:
        pipe.set_progress_bar_config(disable=True)
    assert "8/8" in capsys.readouterr().err


def test_it_takes_a_smaller_type_on_loading_and_afterwards(pipe, exported):
    small = load(exported, torch_dtype=torch.bfloat16)
    assert small.dtype == torch.bfloat16
    assert small.encoders.t5.model.dtype == torch.float32  # as in training
    full, found = (pixels(p(PROMPTS, seed=7).images).astype(int) for p in (pipe, small))
    assert 0 < np.abs(full - found).mean() < 25
    pipe.to(torch.bfloat16)
    assert np.array_equal(pixels(pipe(PROMPTS, seed=7).images), found)


def test_a_residency_may_be_chosen_on_loading(exported, ensemble):
    from ediffi_core.diffusers_pipeline import EdiffiCascade

    cascade = EdiffiCascade.from_pretrained(exported, residency="disk")
    found = load(exported, cascade=cascade)(PROMPTS, seed=7).images
    assert np.array_equal(pixels(found), ensemble.sample(PROMPTS, seed=7))


@pytest.fixture
def modules(monkeypatch, tmp_path):
    """Where diffusers copies code of folders, in place of the user's home."""
    from diffusers.utils import dynamic_modules_utils

    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path)  # it puts the folder on the path; taken back afterwards


def test_diffusers_own_loader_runs_the_folder_s_code_only_if_trusted(exported, ensemble, modules):
    from diffusers import DiffusionPipeline

    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(exported, custom_pipeline=str(exported))
    for name in (str(exported), "pipeline"):
        pipe = DiffusionPipeline.from_pretrained(
            exported, custom_pipeline=name, trust_remote_code=True
        )
        found = pipe("a frog", seed=7).images
        assert np.array_equal(pixels(found), ensemble.sample(["a frog"], seed=7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": []}, "there is no prompt"),
        ({"guidance_scale": 0.5}, r"guidance_scale is 0\.5; write 1 \(none\) or more"),
        ({"num_inference_steps": 0}, "at least 1 step"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0; write 1 or more"),
        ({"output_type": "jpeg"}, "output_type 'jpeg' is none of pil, np, pt"),
        ({"stage": "sr99"}, "there is no stage 'sr99'; the cascade has base, sr16"),
        ({"negative_prompt": ["a", "b", "c"]}, "3 negative prompts for 2 prompts"),
        ({"seed": [1, 2, 3]}, "3 seeds for 2 pictures"),
        ({"seed": 1, "generator": torch.Generator()}, "either a seed or a generator"),
        ({"generator": [torch.Generator()]}, "1 generators for 2 pictures"),
        ({"sampling": {"sparkle": 1}}, "there is no sampling setting 'sparkle'"),
        ({"sampling": {"guidance.scal": 1}}, r"no sampling setting 'guidance\.scal'"),
        ({"sampling": {"solver": "magic"}}, "solver 'magic' is unknown"),
    ],
)
def test_mistakes_are_named(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(**{"prompt": PROMPTS, **options})


def test_a_negative_prompt_without_guidance_warns(pipe):
    with pytest.warns(UserWarning, match="negative_prompt has no effect without guidance"):
        pipe("a frog", negative_prompt="a rocket", guidance_scale=1.0, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe("a frog", negative_prompt="", guidance_scale=1.0, seed=0)


def test_it_is_saved_by_copying_its_folder(pipe, tmp_path):
    with pytest.raises(ValueError, match="copy the exported folder instead"):
        pipe.save_pretrained(tmp_path)


def test_another_encoder_than_that_of_the_training_is_refused(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "model")
    file = tmp_path / "model/encoders/config.json"
    config = json.loads(file.read_text())
    config["trained_with"] = {"t5": {"how": "up to 3 tokens"}}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"encoder t5 differs .* not up to 3 tokens"):
        load(tmp_path / "model")


def test_it_draws_on_a_gpu(exported):
    pipe = load(exported)
    with FakeGPU():
        pipe.cascade.to("cuda")  # the encoders' tokens need real numbers
        assert pipe.device.type == "cuda"
        options = {"guidance_scale": 3.0, "negative_prompt": "a rocket", "output_type": "pt"}
        found = pipe(PROMPTS, seed=1, **options).images
        assert (found.device.type, tuple(found.shape)) == ("cuda", (2, 3, 16, 16))
