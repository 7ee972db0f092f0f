"""The options of `ediffi sample` as a request; what is drawn when a picture is the model."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.cli.sample_output import file_names, is_folder, slug
from pipelines.cli.sample_request import Options, make_request
from pipelines.models.metadata import Metadata, ModelId
from pipelines.models.request import Picture
from pipelines.spec.sampling import SamplingWarning

STAGES = [
    {"name": name, "resolution": side, "experts": {"E0_0": [0, 1]}, "sampling": {"steps": steps}}
    for name, side, steps in (("base", 16, 9), ("sr", 64, 3))
]


def made(like=None, batch=None, stages=STAGES, **options):
    return make_request(Options(**options), stages, batch, like)


def noise(request):
    return [(p.prompt, p.seed, p.number) for p in request.pictures]


def png(request, shows=None):
    """What a picture's file says."""
    shows = list(range(len(request.pictures))) if shows is None else shows
    model = ModelId(name="tiny", manifest="ab")
    return Metadata(ediffi="1", model=model, request=request, shows=shows, scale=1)


def test_pictures_of_one_seed_are_numbered():
    found = made(prompts=["a", "b"], n=2, seed=5)
    assert noise(found) == [("a", 5, 0), ("a", 5, 1), ("b", 5, 2), ("b", 5, 3)]
    assert noise(made(prompts=["a"])) == [("a", 0, 0)]


def test_every_picture_can_have_a_seed_of_its_own():
    assert noise(made(prompts=["a"], seeds="0:3")) == [("a", 0, 0), ("a", 1, 0), ("a", 2, 0)]
    found = made(prompts=["a", "b"], n=2, seeds="3,7")
    assert noise(found) == [("a", 3, 0), ("a", 7, 0), ("b", 3, 0), ("b", 7, 0)]


def test_prompts_come_from_a_file(tmp_path):
    (tmp_path / "p.txt").write_text("b\nc\n")
    found = made(prompts=["a"], file=str(tmp_path / "p.txt"))
    assert [p.prompt for p in found.pictures] == ["a", "b", "c"]


def test_all_settings_of_the_stages_that_run_are_kept():
    found = made(prompts=["a"], settings={"guidance": 3, "sr.steps": 2})
    assert found.sampling["base"].steps == 9 and found.sampling["base"].guidance.scale == 3
    assert found.sampling["sr"].steps == 2
    assert list(made(prompts=["a"], stage="base").sampling) == ["base"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "there is nothing to draw; write one or more prompts"),
        ({"seed": 0, "seeds": "1"}, "--seed and --seeds are both given"),
        ({"settings": {"stesp": 3}}, "there is no sampling setting `stesp`"),
        ({"settings": {"guidance.experts": {"E9_9": 1.0}}}, "guidance for E9_9, but the ensemble"),
        ({"stage": "sr9"}, "there is no stage 'sr9'; the cascade has base, sr"),
        ({"style": ["no.png"]}, r"no.png cannot be read \(No such file"),
        ({"style": ["no.png=x"]}, "has no weight above 0; write FILE or FILE=WEIGHT"),
        ({"paint": ["a cat"]}, "'a cat' paints nothing: write PHRASE=WHERE"),
        ({"paint": ["a cat=0,0,2,1"]}, "is empty or leaves the picture"),
        ({"paint": ["a cat=0,0"]}, "'0,0' is not a box: write left,top,right,bottom"),
        ({"paint": ["a cat=no.png"]}, r"no.png is not a readable image \(No such file"),
        ({"negative": "\udcff"}, "--negative .* is not valid Unicode .character 1.; write it in"),
        ({"prompts": [""]}, "the prompt is empty; write what to draw"),
        ({"prompts": ["a", " \n"]}, "the prompt is empty; write what to draw"),
        ({"then": " ", "switch": 0.3}, "--then is empty; write what to draw"),
        ({"then": "\udcff", "switch": 0.3}, "--then .* is not valid Unicode"),
        ({"prompts": ["a frog", "\udcff"]}, "the prompt .* is not valid Unicode"),
        ({"paint": ["a=0,0,1,1"], "strength": float("inf")}, "--strength is inf; write a number"),
        ({"strength": 1.0}, "--strength is given without --paint"),
        ({"sigma": 1.0}, "--sigma is given without --image"),
        ({"image": Path("no.png")}, r"no.png cannot be read \(No such file"),
        ({"mask": Path("no.png")}, "no.png is not a readable image"),
        ({"switch": 0.3}, "--switch is given without --then, the prompt to switch to"),
        ({"switch_sigma": 3.0}, "--switch-sigma is given without --then"),
        ({"then": "b", "switch": 0.3, "switch_sigma": 3.0}, "are both given; keep one"),
    ],
)
def test_a_mistake_is_one_line(options, message):
    prompts = {"prompts": ["a"] if options else []}
    with pytest.raises(ValueError, match=message) as refused:
        made(**prompts | options)
    assert "\n" not in str(refused.value)


def test_a_setting_without_effect_is_told_before_weights_are_loaded():
    with pytest.warns(SamplingWarning, match="sr: `percentile` has no effect"):
        made(prompts=["a"], settings={"sr.percentile": 0.5})
    with pytest.warns(SamplingWarning, match="`sr.steps` has no effect: stage sr is not run"):
        made(prompts=["a"], stage="base", settings={"sr.steps": 5, "steps": 3})


def test_weights_of_styles(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    found = made(prompts=["a"], style=[f"{tmp_path}/a.png=0.25", f"{tmp_path}/a.png"]).style
    assert [s.weight for s in found] == [0.25, None]
    assert found[0].sha256 == found[1].sha256


def test_masks_are_kept_and_boxes_too(tmp_path):
    half = np.zeros((8, 8), np.uint8)
    half[:, :4] = 255
    Image.fromarray(half).save(tmp_path / "m.png")
    box, mask = made(prompts=["a"], paint=["a=0,0,0.5,1", f"a={tmp_path}/m.png"]).paint
    assert box.where == [0.0, 0.0, 0.5, 1.0] and box.strength == 0.4
    assert 0.45 < np.asarray(mask.where.image()).mean() / 255 < 0.55


# -- on top of a picture's settings --------------------------------------------------------------


def test_a_picture_alone_is_drawn_in_its_company():
    before = made(prompts=["a", "b"], n=2, batch=3, settings={"steps": 4}, stage="base")
    assert made(like=png(before, [2])) == before


def test_options_override_and_draw_the_picture_alone():
    before = made(prompts=["a", "b"], n=2, settings={"steps": 4, "guidance": 2})
    found = made(like=png(before, [2]), settings={"guidance": 3})
    assert noise(found) == [("b", 0, 2)]
    assert (found.sampling["base"].steps, found.sampling["base"].guidance.scale) == (4, 3)


def test_other_prompts_keep_the_noise():
    before = made(prompts=["a"], seeds="3,7")
    assert noise(made(like=png(before), prompts=["x"])) == [("x", 3, 0), ("x", 7, 0)]
    assert noise(made(like=png(before), prompts=["x", "y"])) == [("x", 3, 0), ("y", 7, 0)]
    assert noise(made(like=png(before, [1]), prompts=["x", "y"])) == [("x", 7, 0), ("y", 7, 0)]
    with pytest.raises(ValueError, match="3 prompts for the 2 pictures of --like; give 1 or 2"):
        made(like=png(before), prompts=["x", "y", "z"])


def test_more_pictures_of_one():
    before = made(prompts=["a", "b"], n=2, seed=5)
    assert noise(made(like=png(before, [1]), n=3)) == [("a", 5, 1), ("a", 5, 2), ("a", 5, 3)]
    assert noise(made(like=png(before), seeds="8,9")) == [("a", 8, 0), ("b", 9, 0)]
    assert noise(made(like=png(before), seed=1)) == [("a", 1, 0), ("b", 1, 1)]
    with pytest.raises(ValueError, match="-n goes on with the seed of one picture, but --like has"):
        made(like=png(before), n=3)


def test_the_painted_places_stay_and_their_strength_changes():
    before = made(prompts=["a"], paint=["a=0,0,0.5,1"])
    [painted] = made(like=png(before), strength=2.0).paint
    assert (painted.where, painted.strength) == ([0.0, 0.0, 0.5, 1.0], 2.0)
    assert made(like=png(before), seed=3).paint == before.paint


def test_what_steers_is_kept_and_changed_piece_by_piece(tmp_path):
    file = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(file)
    before = made(prompts=["a"], then="b", switch=0.3, image=file, sigma=2.0, negative="x")
    like = png(before)
    assert made(like=like, seed=1).then == before.then
    assert made(like=like, switch_sigma=1.0).then.model_dump() == {
        "prompt": "b",
        "switch": None,
        "switch_sigma": 1.0,
    }
    assert made(like=like, then="c").then.switch == 0.3
    found = made(like=like, sigma=3.0, negative="").image
    assert (found.sha256, found.sigma) == (before.image.sha256, 3.0)
    assert made(like=like, negative="").negative is None
    other = tmp_path / "b.png"
    Image.new("RGB", (8, 8), "red").save(other)
    found = made(like=like, image=other).image
    assert (found.file, found.sigma) == (str(other), 2.0)


def test_a_variation_takes_the_place_of_a_style(tmp_path):
    file = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(file)
    before = made(prompts=["a"], style=[str(file)])
    found = made(like=png(before), variation=file)
    assert found.style == [] and found.variation.file == str(file)
    found = made(like=png(found), style=[str(file)])
    assert len(found.style) == 1 and found.variation is None
    assert noise(made(variation=file)) == [("", 0, 0)]


def test_another_model_takes_the_settings_of_stages_that_it_has(capsys):
    before = made(prompts=["a"], settings={"steps": 4})
    found = made(like=png(before), stages=STAGES[:1])
    assert found.sampling.keys() == {"base"} and found.sampling["base"].steps == 4
    assert capsys.readouterr().err == (
        "note: the model has no stage sr, whose settings are left out\n"
    )


# -- names ---------------------------------------------------------------------------------------


def test_names_of_files():
    pictures = [Picture(prompt=p, seed=0) for p in ("A frog, on a pink background!", "…", "山 Öl")]
    assert file_names(pictures) == [
        "0001-a-frog-on-a-pink-background.png",
        "0002.png",
        "0003-山-öl.png",
    ]
    assert len(file_names(pictures * 4000)[0].partition("-")[0]) == 5


@pytest.mark.parametrize("prompt", ["very " * 99, "x" * 999, "山" * 999, "../../etc/passwd\0"])
def test_a_name_is_short_and_safe(prompt):
    assert 0 < len(slug(prompt).encode()) <= 180
    assert not set(slug(prompt)) & set("/\\\0. ")


def test_what_means_a_folder(tmp_path):
    (tmp_path / "there.d").mkdir()
    assert is_folder("pictures/") and is_folder("pictures") and is_folder(f"{tmp_path}/there.d")
    assert not is_folder("out.png") and not is_folder("a/out.jpg")
