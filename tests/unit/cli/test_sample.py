"""`ediffi sample` with a tiny ensemble: files, what they say, and the same pixels again."""

import functools
import io
import sys

import ensemble_kit
import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import cli
from pipelines.models import metadata
from pipelines.models.text_to_image import TextToImage

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(load, tmp_path_factory):
    return ensemble_kit.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def load():
    """Loading, once for each ensemble; on one thread, for threads wait long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield functools.cache(TextToImage.load)
    torch.set_num_threads(before)


@pytest.fixture
def sample(store, load, monkeypatch, capsys, tmp_path):
    """``sample(*arguments)`` → exit code, stdout, stderr; in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TextToImage, "load", load)
    monkeypatch.delenv("EDIFFI_DEBUG", raising=False)

    def run(*arguments):
        place = () if "--storage" in arguments else ("--storage", store.root)
        monkeypatch.setattr(sys, "argv", ["ediffi", "sample", *map(str, arguments), *place])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return run


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def refused(result):
    """The one line of an error."""
    code, out, err = result
    assert (code, out, err.count("\n")) == (2, "", 1), result
    return err


def test_a_picture_says_how_it_was_drawn_and_is_drawn_again(sample, store):
    assert sample("tiny@1", "a frog", "--seed", 3, "--set", "steps=3", "--set", "sr16.steps=2") == (
        0,
        "out.png: 1 picture\n",
        "",
    )
    found = metadata.read("out.png")
    assert (found.model.name, found.model.fingerprint) == ("tiny", ensemble_kit.FINGERPRINT)
    assert (found.model.version, found.model.run) == (1, "tiny-1")
    assert [s.steps for s in found.request.sampling.values()] == [3, 2]
    assert Image.open("out.png").size == (256, 256)
    assert sample("--like", "out.png", "-o", "again.png") == (0, "again.png: 1 picture\n", "")
    assert np.array_equal(pixels("again.png"), pixels("out.png"))
    assert metadata.read("again.png") == found
    sample("--like", "out.png", "-o", "other.png", "--set", "steps=4")
    assert not np.array_equal(pixels("other.png"), pixels("out.png"))
    model = TextToImage.load(str(store.local(f"{ensemble_kit.FOLDER}/ensemble.json")))
    plain = model.sample(["a frog"], seed=[3], sampling={"steps": 3, "sr16.steps": 2})[0]
    sample("--like", "out.png", "-o", "small.png", "--scale", 1)
    assert np.array_equal(pixels("small.png"), plain)


def test_a_sheet_is_drawn_again_with_all_its_pictures(sample):
    sample("tiny@1", "a frog", "a rocket", "-n", 3, "--batch", 4, "--guidance", 1)
    sample("--like", "out.png", "-o", "again.png")
    assert np.array_equal(pixels("again.png"), pixels("out.png"))
    found = metadata.read("out.png")
    assert found.sheet.columns == 3 and found.sheet.captions
    sample("tiny@1", "a frog", "a rocket", "-n", 3, "--no-captions", "-o", "plain.png")
    assert Image.open("plain.png").size == (3 * 260 + 4, 2 * 260 + 4)
    sample("--like", "plain.png", "-o", "again.png")
    assert np.array_equal(pixels("again.png"), pixels("plain.png"))


def test_a_folder_has_a_file_for_each_picture(sample, tmp_path):
    (tmp_path / "prompts.txt").write_text("# things\na frog\n\na rocket\na frog and a rocket\n")
    everything = ("tiny@1", "--prompts", "prompts.txt", "--batch", 2, "-o", "pictures/")
    assert sample(*everything) == (0, "pictures/: 3 pictures\n", "")
    names = sorted(p.name for p in (tmp_path / "pictures").iterdir())
    assert names == ["0001-a-frog.png", "0002-a-rocket.png", "0003-a-frog-and-a-rocket.png"]
    assert {Image.open(f"pictures/{name}").size for name in names} == {(16, 16)}
    for name in names:
        assert sample("--like", f"pictures/{name}", "-o", "again.png")[2] == ""
        assert np.array_equal(pixels("again.png"), pixels(f"pictures/{name}"))
    assert [p.number for p in metadata.read(f"pictures/{names[2]}").shown] == [2]
    line = refused(sample(*everything))
    assert "pictures/0001-a-frog.png and 2 more exists" in line and "--force" in line
    assert sample(*everything, "--force")[0] == 0


def test_a_seed_gives_a_picture_whatever_else_is_drawn(sample):
    sample("tiny@1", "a frog", "--seeds", "5:8", "-o", "all/")
    sample("tiny@1", "a frog", "--seed", 6, "--scale", 1)
    together = pixels("all/0002-a-frog.png").astype(int)
    assert abs(together - pixels("out.png")).max() <= 1  # rounding
    assert abs(together - pixels("all/0001-a-frog.png")).max() > 8


def test_painted_words_and_styles_are_kept(sample, tmp_path):
    half = np.zeros((8, 8), np.uint8)
    half[:, :4] = 255
    Image.fromarray(half).save("mask.png")
    Image.new("RGB", (32, 32), "green").save("style.png")
    paint = ("--paint", "a frog=mask.png", "--paint", "a rocket=0.5,0,1,1", "--strength", 5)
    sample("tiny@1", "a frog and a rocket", *paint, "--style", "style.png")
    (tmp_path / "mask.png").unlink()  # is in the picture
    sample("--like", "out.png", "-o", "again.png")
    assert np.array_equal(pixels("again.png"), pixels("out.png"))
    sample("--like", "out.png", "-o", "other.png", "--strength", 0)
    assert not np.array_equal(pixels("other.png"), pixels("out.png"))
    Image.new("RGB", (32, 32), "red").save("style.png")
    assert "style.png has changed" in refused(sample("--like", "out.png", "-o", "again.png"))
    (tmp_path / "style.png").unlink()
    assert "style.png is gone" in refused(sample("--like", "out.png", "-o", "again.png"))


def test_all_that_steers_is_kept(sample, tmp_path):
    half = np.zeros((16, 16), np.uint8)
    half[:, :8] = 255
    Image.fromarray(half).save("mask.png")
    Image.new("RGB", (16, 16), "green").save("start.png")
    steered = {
        "image": ("--image", "start.png", "--sigma", 3),
        "mask": ("--image", "start.png", "--mask", "mask.png"),
        "variation": ("--variation", "start.png"),
        "style": ("--style", "mask.png=0.3", "--style", "start.png=0.7"),
        "then": ("--then", "a rocket", "--switch", 0.3),
        "negative": ("--negative", "a rocket"),
    }
    sample("tiny@1", "a frog", "-o", "plain.png")
    for name, options in steered.items():
        out = f"with-{name}.png"
        assert sample("tiny@1", "a frog", *options, "-o", out)[::2] == (0, "")
        assert not np.array_equal(pixels(out), pixels("plain.png")), name
        assert sample("--like", out, "-o", "again.png")[2] == ""
        assert np.array_equal(pixels("again.png"), pixels(out)), name
    kept = pixels("with-mask.png")[10:240, 140:250]
    assert abs(kept.astype(int) - (0, 128, 0)).mean() < 3


def test_options_that_do_not_fit_are_refused_before_weights_are_loaded(sample, monkeypatch):
    monkeypatch.delattr(TextToImage, "load")
    for name, side in (("a", 16), ("b", 8)):
        Image.new("RGB", (side, side)).save(f"{name}.png")
    line = refused(sample("tiny@1", "a frog", "--image", "a.png", "--mask", "b.png"))
    assert "`mask` has 8×8 pixels and `image` 16×16" in line
    assert "-1" in refused(sample("tiny@1", "a frog", "--image", "a.png", "--sigma", -1))
    assert "`mask` is given without `image`" in refused(
        sample("tiny@1", "a frog", "--mask", "a.png")
    )
    assert "'a dog' is in no prompt" in refused(
        sample("tiny@1", "a frog", "--paint", "a dog=0,0,1,1")
    )


def test_no_metadata(sample):
    sample("tiny@1", "a frog", "--no-metadata")
    assert Image.open("out.png").text == {}
    line = refused(sample("--like", "out.png", "-o", "again.png"))
    assert "does not say how it was drawn" in line


def test_a_model_that_is_another_is_told(sample, store, tmp_path):
    sample("tiny@1", "a frog")
    own = store.read_json(f"{ensemble_kit.FOLDER}/ensemble.json")
    own["stages"][0]["sampling"]["steps"] = 2
    (tmp_path / "other.json").write_text(ensemble_kit.json.dumps(own))
    code, _, err = sample("other.json", "--like", "out.png", "-o", "again.png")
    assert code == 0 and err == (
        "note: the picture of --like was drawn by tiny (version 1, 01234567), not by tiny\n"
    )
    assert np.array_equal(pixels("again.png"), pixels("out.png"))  # with the settings of before
    line = refused(sample("--like", "out.png", "-o", "x.png", "--storage", str(tmp_path)))
    assert "tiny (version 1, 01234567), which drew the picture, is not in" in line


def test_pixels_that_differ_are_told(sample):
    sample("tiny@1", "a frog", "--scale", 1)
    found = metadata.read("out.png")
    image = Image.open("out.png")
    image.putpixel((3, 3), tuple((v + 9) % 256 for v in image.getpixel((3, 3))))
    image.save("out.png", pnginfo=found.chunks())
    code, _, err = sample("--like", "out.png", "-o", "again.png")
    assert code == 0 and err.startswith("note: pixels differ from out.png by up to ")


def test_prompts_from_standard_input_in_a_format_without_metadata(sample, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a frog\na rocket\n")))
    assert sample("tiny@1", "--prompts", "-", "-o", "out.jpg")[1] == "out.jpg: 2 pictures\n"
    assert Image.open("out.jpg").format == "JPEG"


def test_the_picture_of_like_is_not_overwritten_by_accident(sample):
    sample("tiny@1", "a frog")
    before = pixels("out.png")
    assert "out.png is the picture of --like" in refused(sample("--like", "out.png", "-n", 2))
    assert np.array_equal(pixels("out.png"), before)


def test_what_is_drawn_from_is_not_overwritten_by_accident(sample, tmp_path):
    (tmp_path / "sub").mkdir()
    sample("tiny@1", "a frog", "-o", "sub/a.png")
    before = pixels("sub/a.png")
    for option in ("--image", "--style", "--variation"):
        line = refused(sample("tiny@1", "a frog", option, "sub/a.png", "-o", "sub/a.png"))
        assert f"sub/a.png is the picture of {option}; name another file" in line
    assert sample("tiny@1", "a frog", "--image", "sub/a.png", "-o", "sub/b.png")[0] == 0
    (tmp_path / "sub").rename(tmp_path / "moved")
    line = refused(sample("--like", "moved/b.png", "-n", 1, "-o", "moved/a.png"))
    assert "moved/a.png is the picture of --image" in line
    assert np.array_equal(pixels("moved/a.png"), before)
    assert sample("--like", "moved/b.png", "-o", "moved/a.png", "--force")[0] == 0


def test_pixels_that_differ_are_told_of_a_picture_that_is_overwritten(sample):
    sample("tiny@1", "a frog", "--scale", 1)
    found = metadata.read("out.png")
    Image.new("RGB", (16, 16)).save("out.png", pnginfo=found.chunks())
    code, _, err = sample("--like", "out.png", "--force")
    assert code == 0 and err.startswith("note: pixels differ from out.png by up to ")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("out.xbm", "cannot write mode RGB as XBM; name a .png file with --output"),
        ("out.h5", "name a .png file with --output"),
        ("file.txt/out.png", "file.txt/out.png cannot be written; give a writable path"),
    ],
)
def test_what_cannot_be_written_is_one_line(output, message, sample, tmp_path, monkeypatch):
    monkeypatch.delattr(TextToImage, "load")
    (tmp_path / "file.txt").write_text("")
    assert message in refused(sample("tiny@1", "a frog", "-o", output))


def test_a_name_that_the_disk_does_not_take_is_one_line(sample):
    assert sample("tiny@1", "a frog", "-o", "x" * 251 + ".png")[0] == 0
    long = "x" * 300 + ".png"
    assert "cannot be written (File name too long)" in refused(sample("tiny@1", "a", "-o", long))


def test_a_large_picture_is_no_warning(sample, monkeypatch):
    Image.new("L", (30, 30)).save("large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    again = ("--image", "large.png", "--stage", "base", "--scale", 1)
    assert sample("tiny@1", "a frog", *again) == (0, "out.png: 1 picture\n", "")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    assert "large.png is not a readable image" in refused(sample("tiny@1", "a frog", *again))


def test_a_mistake_is_found_before_weights_are_loaded(sample, monkeypatch):
    monkeypatch.delattr(TextToImage, "load")
    line = refused(sample("tiny@1", "a frog", "--set", "stesp=3"))
    assert "there is no sampling setting `stesp`; did you mean `steps`?" in line
    assert "no model is given" in refused(sample())
    twice = ("--guidance", 5, "--set", "guidance=2")
    assert "--guidance and --set guidance are both" in refused(sample("tiny@1", "a frog", *twice))
    assert "`steps` is 20.0: " in refused(sample("tiny@1", "a frog", "--set", "steps=2e1"))
    assert "unknown extension" in refused(sample("tiny@1", "a frog", "-o", "out.nonsense"))
    assert "too many for one sheet" in refused(sample("tiny@1", "a frog", "-n", 9999))


def test_a_setting_without_effect_is_one_note(sample):
    code, out, err = sample("tiny@1", "a frog", "-n", 2, "--batch", 1, "--set", "percentile=0.9")
    assert (code, out) == (0, "out.png: 2 pictures\n")
    assert err == "note: base: `percentile` has no effect without `threshold: dynamic`\n"


def test_a_terminal_is_asked_before_a_picture_is_overwritten(sample, terminal):
    """A script is not: the tests above overwrite ``out.png``."""
    draw = ("tiny@1", "a frog", "--scale", 1)
    assert sample(*draw)[0] == 0  # there is nothing to ask
    before = pixels("out.png")
    terminal("n\n")
    assert sample(*draw, "--seed", 1)[:2] == (1, "")
    assert np.array_equal(pixels("out.png"), before)
    terminal("y\n")
    assert sample(*draw, "--seed", 1)[0] == 0
    assert not np.array_equal(pixels("out.png"), before)
    assert sample(*draw, "--force")[0] == 0
    assert np.array_equal(pixels("out.png"), before)
