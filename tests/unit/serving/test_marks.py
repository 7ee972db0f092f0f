"""The watermark is found by its key alone, after what happens to pictures; the sign is legible."""

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.demo.scenes import draw
from pipelines.serving import marks
from pipelines.serving.marks import check_file, find_mark, mark, threshold
from pipelines.spec.serving import Marks

pytestmark = pytest.mark.slow

INVISIBLE, VISIBLE = Marks(invisible=True), Marks(visible=True)
KEY = b"a key"
TERM = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


@pytest.fixture(scope="module")
def pictures():
    return [draw(3, "train", i)[1] for i in range(12)]


def jpeg(pixels, quality):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality)
    return np.asarray(Image.open(out))


def twice_and_back(pixels):
    image = Image.fromarray(pixels)
    larger = image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC)
    return np.asarray(larger.resize(image.size, Image.Resampling.BICUBIC))


CHANGES = {
    "none": lambda x: x,
    "jpeg 90": lambda x: jpeg(x, 90),
    "jpeg 75": lambda x: jpeg(x, 75),
    "brighter": lambda x: np.clip(x * 1.1, 0, 255).astype(np.uint8),
    "darker": lambda x: (x * 0.9).astype(np.uint8),
    "cropped": lambda x: x[4:-4, 4:-4],
    "cropped to a corner": lambda x: x[13:, 7:],
    "twice and back": twice_and_back,
    "with the sign": lambda x: mark(x, VISIBLE),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_the_watermark_survives(pictures, change):
    assert all(find_mark(change(mark(p, INVISIBLE, KEY)), KEY).is_marked for p in pictures)


def test_larger_pictures_keep_it_through_strong_jpeg(pictures):
    large = np.concatenate([np.concatenate(pictures[i : i + 4], 1) for i in (0, 4, 8)])
    assert large.shape == (192, 256, 3)
    small = np.median([find_mark(jpeg(mark(p, INVISIBLE, KEY), 40), KEY).z for p in pictures])
    assert find_mark(jpeg(mark(large, INVISIBLE, KEY), 40), KEY).z > 2 * small


def test_nothing_is_found_without_a_mark_or_by_another_key(pictures):
    keys = [f"key {i}".encode() for i in range(40)]
    found = [find_mark(p, key).z for p in pictures for key in keys]
    assert max(found) < threshold()
    marked = mark(pictures[0], INVISIBLE, KEY)
    assert max(find_mark(marked, key).z for key in keys) < threshold()


def test_correlations_of_unmarked_pictures_are_as_the_threshold_takes_them(pictures, monkeypatch):
    monkeypatch.setattr(marks, "FALSE_POSITIVES", 0.2)
    found = [find_mark(p, f"key {i}".encode()).is_marked for p in pictures for i in range(40)]
    assert 0.1 < np.mean(found) < 0.25  # of 480


def test_the_watermark_is_faint_and_fainter_on_flat_ground(pictures):
    for p in pictures:
        error = mark(p, INVISIBLE, KEY).astype(float) - p
        assert 10 * np.log10(255**2 / np.mean(error**2)) > 35
    flat = np.full((64, 64, 3), 128, np.uint8)
    change = mark(flat, INVISIBLE, KEY).astype(float) - flat
    assert 0 < change.std() < 1.5 and abs(change).max() <= 6
    assert abs(change.mean()) < 0.05


@pytest.mark.parametrize("level", [0, 255])
def test_pixels_do_not_wrap_around(level):
    pixels = np.full((64, 64, 3), level, np.uint8)
    assert abs(mark(pixels, INVISIBLE, KEY).astype(int) - level).max() < 8


@pytest.mark.parametrize("size", [(64, 64), (8, 8), (256, 192), (300, 70)])
@pytest.mark.parametrize("ground", [0, 128, 255])
def test_the_sign_is_black_and_white_in_the_lower_right_corner(size, ground):
    pixels = np.full((*size, 3), ground, np.uint8)
    out = mark(pixels, VISIBLE)
    side = 7 * max(1, min(size) // 64)
    sign = out[-side - side // 7 :, -side - side // 7 :]
    assert {0, 255} <= {*sign.ravel().tolist()}
    assert np.sum(sign == 255) >= 3 * 13 * (side // 7) ** 2
    out[-side - side // 7 :, -side - side // 7 :] = ground
    assert np.array_equal(out, pixels)


def test_a_picture_without_room_is_refused():
    with pytest.raises(ValueError, match="5×6 pixels has no room for the visible mark; leave"):
        mark(np.zeros((6, 5, 3), np.uint8), VISIBLE)


def test_nothing_is_marked_unless_asked(pictures):
    assert mark(pictures[0], Marks()) is pictures[0]
    before = pictures[0].copy()
    mark(pictures[0], Marks(visible=True, invisible=True))
    assert np.array_equal(before, pictures[0])


def test_a_flat_picture_has_no_mark_and_no_error():
    assert not find_mark(np.zeros((64, 64, 3), np.uint8), KEY).is_marked
    assert not find_mark(np.full((1, 1, 3), 7, np.uint8), KEY).is_marked


def test_a_file_tells_its_mark_its_key_and_its_source(pictures, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    monkeypatch.delenv("EDIFFI_MARK_KEY", raising=False)
    Image.fromarray(mark(pictures[0], INVISIBLE)).save(path)
    found = check_file(path)
    assert found.watermark.is_marked and found.is_public_key and found.source_type is None
    assert "watermark of the public key: found (z = " in str(found)
    monkeypatch.setenv("EDIFFI_MARK_KEY", "mine")
    assert not check_file(path).watermark.is_marked
    packet = f"<x>{TERM}</x>".encode()
    Image.fromarray(mark(pictures[0], INVISIBLE)).save(tmp_path / "b.jpg", quality=90, xmp=packet)
    found = check_file(tmp_path / "b.jpg")
    assert found.watermark.is_marked and not found.is_public_key and found.source_type == TERM
    (tmp_path / "c.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"c\.png is not a readable image"):
        check_file(tmp_path / "c.png")
