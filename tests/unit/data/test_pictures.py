"""Pictures become upright 8-bit RGB whatever they were, and stay sharp and free of aliases."""

import io

import numpy as np
import pytest
from dirty import FRAMES, JPEG, bomb, encoded, noise
from PIL import Image

from pipelines.data.pictures import centre_square, decode, shortest_side, size_of
from pipelines.data.rows import BadRow, Reason

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")


def pixels(data, **options):
    return np.asarray(decode(data, **options)).astype(int)


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.linspace(0, 65_535, 32 * 32).reshape(32, 32).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        found = pixels(encoded(Image.fromarray(ramp), kind))
        assert np.abs(found - (ramp / 257)[..., None]).max() <= 0.5


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode):
    picture = noise((32, 32), mode)
    values = np.asarray(picture.convert("RGBA")).astype(float)
    alpha = values[..., 3:] / 255
    expected = values[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(pixels(encoded(picture, "PNG")) - expected).max() <= 1


def test_a_transparent_palette_and_colour_are_laid_on_white():
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((0, 0), 0)
    for kind in ("PNG", "GIF"):
        found = pixels(encoded(palette, kind, transparency=0))
        assert found[0, 0].tolist() == [255, 255, 255]
        assert found[4, 4].tolist() == [10, 20, 30]
    keyed = encoded(Image.new("RGB", (8, 8), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert pixels(keyed).min() == 255


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture_upright(orientation, kind):
    corners = np.zeros((32, 48, 3), np.uint8)
    corners[:16, :24], corners[:16, 24:], corners[16:, :24] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    upright = Image.fromarray(corners)
    to = Image.Transpose
    stored = {
        2: to.FLIP_LEFT_RIGHT,
        3: to.ROTATE_180,
        4: to.FLIP_TOP_BOTTOM,
        5: to.TRANSPOSE,
        6: to.ROTATE_90,
        7: to.TRANSVERSE,
        8: to.ROTATE_270,
    }
    picture = upright if orientation == 1 else upright.transpose(stored[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = pixels(encoded(picture, kind, exif=exif))
    assert found.shape == (32, 48, 3)
    assert np.abs(found - corners).mean() < 8


def test_a_broken_exif_costs_no_picture():
    whole = encoded(noise(), exif=Image.Exif())
    spoilt = encoded(noise(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xffgarbage")
    assert (pixels(spoilt) == pixels(whole)).all()


def test_cmyk_keeps_its_colours():
    red = Image.new("RGB", (32, 32), (230, 20, 20)).convert("CMYK")
    assert np.abs(pixels(encoded(red))[16, 16] - [230, 20, 20]).max() < 12


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert np.abs(pixels(data)[16, 16] - [255, 0, 0]).max() < 6


def test_a_bomb_is_known_by_its_header():
    for read in (size_of, decode):
        with pytest.raises(BadRow) as error:
            read(bomb())
        assert error.value.reason == Reason.IMAGE_PIXELS
        with pytest.raises(BadRow) as error:
            read(JPEG, max_pixels=64 * 64 - 1)
        assert error.value.reason == Reason.IMAGE_PIXELS
    assert size_of(JPEG, max_pixels=64 * 64) == (64, 64)


def test_garbage_is_a_bad_row_and_nothing_else():
    random = np.random.default_rng(0)
    whole = [encoded(noise(), kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF")]
    whole.append(encoded(FRAMES[0], "GIF"))
    refused = 0
    for data in whole:
        for _ in range(60):
            spoilt = bytearray(data)
            for at in random.integers(0, min(200, len(data)), 3):
                spoilt[at] = random.integers(256)
            try:
                assert decode(bytes(spoilt)).mode == "RGB"
            except BadRow:
                refused += 1
    assert refused > 30


@pytest.mark.parametrize("lost", [1, 8, 12, 20, 200])
def test_a_png_that_lacks_its_last_bytes_is_cut_short(lost):
    """With 20 of them go the checksums of its pixels."""
    whole = encoded(noise(), "PNG")
    with pytest.raises(BadRow) as error:
        decode(whole[:-lost])
    assert error.value.reason == Reason.IMAGE_BROKEN
    assert (pixels(whole + b"what some programs leave behind") == pixels(whole)).all()


def zone_plate(side):
    """Rings whose frequency rises to Nyquist at the border: what aliases shows."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    rings = 127.5 + 127.5 * np.cos(np.pi * side / 4 * (x**2 + y**2))
    return Image.fromarray(rings.astype(np.uint8)).convert("RGB")


def test_shrinking_does_not_alias():
    plate = zone_plate(512)
    for small in (shortest_side(plate, 64), centre_square(plate, 64)):
        values = np.asarray(small).astype(float)[..., 0]
        assert values[:8].std() < 8  # rings too fine for 64 pixels are grey, not false rings
        assert values[28:36, 28:36].std() > 20
    naive = np.asarray(plate.resize((64, 64), Image.Resampling.NEAREST)).astype(float)[..., 0]
    assert naive[:8].std() > 40


def test_a_jpeg_decoded_small_is_as_good_as_one_decoded_whole():
    data = encoded(zone_plate(1024), quality=95)
    part = decode(data, side=64)
    assert part.size == (128, 128)
    assert decode(data, side=100).size == (256, 256)
    assert decode(data, side=600).size == (1024, 1024)
    small, reference = (
        np.asarray(shortest_side(p, 64)).astype(float) for p in (part, decode(data))
    )
    assert np.abs(small - reference).mean() < 2


def test_sides():
    picture = noise((120, 90))
    assert shortest_side(picture, 30).size == (40, 30)
    assert shortest_side(noise((20, 3000)), 20).size == (20, 3000)
    assert centre_square(picture, 90).tobytes() == picture.crop((15, 0, 105, 90)).tobytes()
    for resize in (shortest_side, centre_square):
        with pytest.raises(ValueError, match="would be enlarged to 91"):
            resize(picture, 91)
