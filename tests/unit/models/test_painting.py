"""Painted phrases from untrusted JSON: the same masks as on a command line, and no file is read."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.data import pictures
from pipelines.models import painting
from pipelines.models.request import Mask


def test_a_box_is_the_same_as_list_and_text():
    (listed,) = painting.phrases_from_json([{"phrase": "a cat", "where": [0, 0.25, 0.5, 1]}])
    (written,) = painting.phrases_from_json([{"phrase": "a cat", "where": "0,0.25,0.5,1"}])
    assert listed.text == "a cat" and listed.strength == painting.STRENGTH
    assert torch.equal(listed.mask, written.mask)
    assert listed.mask.mean() == 0.375


def test_a_picture_is_a_mask_where_it_is_bright():
    half = np.zeros((8, 8, 3), np.uint8)
    half[:, :4] = 255
    (phrase,) = painting.phrases_from_json(
        [{"phrase": "a cat", "where": painting.encode_png(half), "strength": 1}]
    )
    assert phrase.strength == 1 and 0.4 < phrase.mask.mean() < 0.6
    assert phrase.mask[:, :24].all() and not phrase.mask[:, 40:].any()


def test_encoding_and_decoding_restores_an_image():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8)
    assert np.array_equal(np.asarray(painting.decode_image(painting.encode_png(pixels))), pixels)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("a cat", "'a cat' paints nothing: write {"),
        ({"phrase": "a cat"}, "paints nothing"),
        ({"phrase": "a cat", "where": [0, 0, 1, 1], "power": 1}, "paints nothing"),
        ({"phrase": " ", "where": [0, 0, 1, 1]}, "phrase ' ' is not a text"),
        ({"phrase": "a cat", "where": [0, 0, 1]}, "'0,0,1' is not a box"),
        ({"phrase": "a cat", "where": 3}, "3 is not a box"),
        ({"phrase": "a cat", "where": [0, 0, 2, 1]}, "box '0,0,2,1' is empty or leaves"),
        ({"phrase": "a cat", "where": "/etc/hostname"}, "'/etc/hostname' is not an image"),
        ({"phrase": "a cat", "where": [0, 0, 1, 1], "strength": -1}, "strength of 'a cat' is -1"),
        ({"phrase": "a cat", "where": [0, 0, 1, 1], "strength": float("nan")}, "is nan"),
    ],
)
def test_bad_phrases_are_refused_in_one_line(raw, message):
    with pytest.raises(ValueError) as refused:
        painting.phrases_from_json([raw])
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_no_local_file_is_read(tmp_path):
    Image.new("RGB", (8, 8), "white").save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="is not an image"):
        painting.phrases_from_json([{"phrase": "a cat", "where": str(tmp_path / "mask.png")}])


def test_formats_that_make_pillow_run_programs_are_refused():
    text = base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n").decode()
    with pytest.raises(ValueError, match="give a PNG, JPEG or WebP as base64"):
        painting.decode_image(text)


def test_a_phrase_is_painted_where_it_is_a_word():
    """Not where it is part of a word."""
    prompts = ["a cat", "a category", "The CAT, asleep", "cats", "a cat\u2019s hat"]
    assert painting.holders("cat", prompts) == [0, 2, 4]
    assert painting.holders("black  cat", ["a black cat", "a black\ncat"]) == [0, 1]
    assert painting.holders("cat", ["a dog", "a frog"], then="a cat") == [0, 1]
    with pytest.raises(ValueError, match="phrase 'cat' is in no prompt; paint whole words"):
        painting.holders("cat", ["a category"])


def test_an_argument_is_a_phrase_and_a_place():
    assert painting.split_argument(" a = b = 0,0,1,1") == ("a = b", "0,0,1,1")
    for text in ("a cat", "=0,0,1,1", "a cat="):
        with pytest.raises(ValueError, match="paints nothing: write PHRASE=WHERE"):
            painting.split_argument(text)


def png(image):
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "1"])
def test_pictures_are_read_as_in_training(mode, tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(values, "RGBA").convert(mode)
    (tmp_path / "a.png").write_bytes(png(image))
    expected = np.asarray(pictures.decode(png(image)))
    assert np.array_equal(np.asarray(painting.open_image(tmp_path / "a.png")), expected)
    text = base64.b64encode(png(image)).decode()
    assert np.array_equal(np.asarray(painting.decode_image(text)), expected)
    assert 0 < expected.mean() < 255


def test_a_mask_is_dark_where_it_is_transparent(tmp_path):
    brush = np.full((8, 8, 4), 255, np.uint8)
    brush[:, 4:, 3] = 0
    (tmp_path / "m.png").write_bytes(png(Image.fromarray(brush)))
    mask = np.asarray(Mask.read(tmp_path / "m.png").image())
    assert mask[:, :4].all() and not mask[:, 4:].any()
    (phrase,) = painting.phrases_from_json(
        [{"phrase": "a cat", "where": base64.b64encode(png(Image.fromarray(brush))).decode()}]
    )
    assert phrase.mask[:, :24].all() and not phrase.mask[:, 40:].any()


def test_a_picture_of_32_bits_is_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a.tif is not a readable image \(mode F\)"):
        painting.open_image(tmp_path / "a.tif")
