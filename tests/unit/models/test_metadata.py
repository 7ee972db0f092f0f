"""A PNG file tells how it was drawn; files it refers to are found, or missed in one line."""

import json

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.models import metadata
from pipelines.models.metadata import Metadata, ModelId, Sheet, manifest_hash
from pipelines.models.request import Mask, Painted, Picture, Reference, Request, Start, Style, Then
from pipelines.spec.sampling import Sampling

MODEL = ModelId(name="tiny", manifest="ab", fingerprint="0123456789abcdef", version=3)


def picture_file(path, color="red", size=(8, 8)):
    Image.new("RGB", size, color).save(path)
    return path


def request_of(**changes):
    pictures = [Picture(prompt="eine Kröte 山", seed=2**60, number=i) for i in range(3)]
    sampling = {"base": Sampling(steps=7, guidance={"scale": 2.0, "interval": [0.1, 5.0]})}
    return Request(pictures=pictures, sampling=sampling, **changes)


def about(request, shows=(0, 1, 2)):
    sheet = Sheet(columns=2, captions=True)
    return Metadata(
        ediffi="1.0", model=MODEL, request=request, shows=list(shows), scale=4, sheet=sheet
    )


def saved(path, found):
    Image.new("RGB", (4, 4)).save(path, pnginfo=found.chunks())
    return path


def test_what_is_written_is_read(tmp_path):
    style = picture_file(tmp_path / "style.png")
    half = np.zeros((10, 20), np.uint8)
    half[:, :7] = 255
    Image.fromarray(half).save(tmp_path / "mask.png")
    mask = Mask.read(tmp_path / "mask.png")
    request = request_of(
        negative="blurry",
        style=[Style.of(style, weight=0.5)],
        mask=mask,
        then=Then(prompt="a rocket", switch=0.3),
        paint=[
            Painted(phrase="Kröte", where=[0.0, 0.0, 0.5, 1.0], strength=0.4),
            Painted(phrase="山", where=Mask.read(tmp_path / "mask.png", 64), strength=1.0),
        ],
    )
    found = metadata.read(saved(tmp_path / "a.png", about(request)))
    assert found == about(request)
    assert np.array_equal(np.asarray(found.request.mask.image())[..., 0], half)
    assert found.request.paint[1].where.image().size == (64, 64)


def test_viewers_show_prompts_settings_and_model(tmp_path):
    one = about(request_of(negative="blurry"), [1])
    text = Image.open(saved(tmp_path / "a.png", one)).text
    assert text["Software"] == "ediffi 1.0"
    lines = text["Description"].splitlines()
    assert lines[0] == "eine Kröte 山" and "negative prompt: blurry" in lines
    assert f"seed {2**60}, picture 2" in lines
    assert lines[-1] == "model: tiny (version 3, 01234567)"
    assert any(line.startswith("base: steps=7, solver=deis3, guidance=") for line in lines)


@pytest.mark.parametrize(
    ("then", "line"),
    [
        ({"switch": 0.3}, "then: a rocket (after 30% of the steps)"),
        ({"switch_sigma": 2.5}, "then: a rocket (from σ = 2.5)"),
    ],
)
def test_viewers_show_what_steers(then, line):
    request = request_of(
        negative="blurry",
        then=Then(prompt="a rocket", **then),
        image=Start(file="in/start.png", sha256="0"),
        style=[Style(file=f"{name}.png", sha256="0") for name in "ab"],
        paint=[Painted(phrase="Kröte", where=[0, 0, 1, 1], strength=1)],
    )
    lines = ["negative prompt: blurry", line, "painted: Kröte", "image: start.png"]
    assert request.steered_by() == [*lines, "style: a.png and b.png"]
    assert "\n".join(request.steered_by()) in about(request).describe()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not say how it was drawn; --like needs a PNG file"),
        ("{", "holds settings that ediffi .* cannot read"),
        (json.dumps({"format": 2}), "cannot read .`format`: .*use the version that drew it"),
    ],
)
def test_a_file_without_settings_is_one_line(tmp_path, text, message):
    info = PngInfo()
    if text is not None:
        info.add_itxt("ediffi", text)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(ValueError, match=message) as refused:
        metadata.read(tmp_path / "a.png")
    assert "\n" not in str(refused.value)


def test_a_picture_that_shows_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="names pictures that are not there"):
        about(request_of(), [3])
    for change in ({"scale": 0}, {"sheet": {"columns": 0, "captions": True}}):
        with pytest.raises(ValueError, match="greater than or equal to 1"):
            Metadata(**{**dict(about(request_of())), **change})


def test_a_file_that_is_no_picture_is_one_line(tmp_path):
    (tmp_path / "a.png").write_text("no")
    for name in ("a.png", "b.png"):
        with pytest.raises(ValueError, match="is not a readable image"):
            metadata.read(tmp_path / name)


def test_a_reference_is_found_where_it_was_and_beside_the_picture(tmp_path, monkeypatch):
    (tmp_path / "moved").mkdir()
    picture_file(tmp_path / "style.png")
    monkeypatch.chdir(tmp_path)
    found = Reference.of("style.png")
    drawn = tmp_path / "moved/drawn.png"
    assert found.find("--style", drawn).samefile("style.png")
    (tmp_path / "style.png").rename(tmp_path / "moved/style.png")
    assert found.find("--style", drawn) == tmp_path / "moved/style.png"
    picture_file(tmp_path / "moved/style.png", "blue")
    with pytest.raises(ValueError, match=r"style.png has changed since .*; restore it, or give"):
        found.find("--style", drawn)
    (tmp_path / "moved/style.png").unlink()
    with pytest.raises(ValueError, match="is gone; restore it, or give another file with --style"):
        found.find("--style", drawn)


def test_batches_follow_each_other_whatever_the_seeds():
    def batches(noise, batch):
        pictures = [Picture(prompt="a", seed=s, number=n) for s, n in noise]
        request = Request(pictures=pictures, sampling={}, batch=batch)
        return [list(rows) for rows in request.batches()]

    noise = [(0, 0), (0, 1), (1, 0), (2, 4), (2, 4)]
    assert batches(noise, 3) == [[0, 1, 2], [3, 4]]
    assert batches(noise, 5) == batches(noise, 9) == [[0, 1, 2, 3, 4]]


def test_the_hash_of_a_manifest_is_the_same_in_every_store():
    here, there = {"store": "/a", "model": "x"}, {"model": "x", "store": "s3://b"}
    assert manifest_hash(here) == manifest_hash(there) != manifest_hash({"model": "y"})
