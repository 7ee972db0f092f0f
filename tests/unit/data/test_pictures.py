"""Any picture becomes upright 8-bit RGB, sharp and without aliasing."""

import io
import struct

import numpy as np
import pytest
from dirty import FRAMES, JPEG, bomb, encoded, noise
from PIL import Image, PngImagePlugin

from pipelines.data.pictures import centre_square, decode, for_clip, shortest_side, size_of
from pipelines.data.rows import Reason, RowError

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
    damaged = encoded(noise(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xffgarbage")
    assert (pixels(damaged) == pixels(whole)).all()


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
        with pytest.raises(RowError) as error:
            read(bomb())
        assert error.value.reason == Reason.IMAGE_PIXELS
        with pytest.raises(RowError) as error:
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
            damaged = bytearray(data)
            for at in random.integers(0, min(200, len(data)), 3):
                damaged[at] = random.integers(256)
            try:
                assert decode(bytes(damaged)).mode == "RGB"
            except RowError:
                refused += 1
    assert refused > 30


@pytest.mark.parametrize("lost", [1, 8, 12, 20, 200])
def test_a_png_that_lacks_its_last_bytes_is_cut_short(lost):
    """With 20 of them go the checksums of its pixels."""
    whole = encoded(noise(), "PNG")
    with pytest.raises(RowError) as error:
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


def gradient(size=256):
    y, x = np.mgrid[:size, :size]
    return Image.fromarray(np.stack([x, y, (x + y) // 8 % 2 * 200], -1).astype(np.uint8))


def preallocated(data):
    """A download that was given its size before its content, and stopped half-way."""
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 90}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"exif": True}),
        ("MPO", {}),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_a_tail_of_zeros_is_no_picture(kind, options):
    """The thumbnail in an Exif is a whole JPEG, and its end is not that of the picture."""
    if "exif" in options:
        exif = Image.Exif()
        exif[0x010E] = encoded(noise((32, 32))).decode("latin-1")
        options = {"exif": exif}
    if kind == "MPO":
        options = {"save_all": True, "append_images": [gradient()]}
    whole = encoded(gradient(), kind, **options)
    assert (pixels(whole) == pixels(whole + bytes(1000))).all()
    damaged = whole[: len(whole) // 3] + bytes(len(whole)) if kind == "MPO" else preallocated(whole)
    with pytest.raises(RowError) as error:
        decode(damaged, side=32)
    assert error.value.reason == Reason.IMAGE_BROKEN


@pytest.mark.parametrize("kind", ["text", "profile", "after the pixels"])
def test_a_png_with_large_notes_is_its_pixels(kind):
    picture, info, large = noise(), PngImagePlugin.PngInfo(), "x" * 2_000_000
    info.add_itxt("XML:com.adobe.xmp", large, zip=True)
    options = {"icc_profile": large.encode()} if kind == "profile" else {"pnginfo": info}
    data = encoded(picture, "PNG", **options)
    if kind == "after the pixels":
        plain = encoded(picture, "PNG")
        at = data.index(b"iTXt") - 4
        note = data[at : at + 12 + int.from_bytes(data[at : at + 4], "big")]
        data = plain[:-12] + note + plain[-12:]
    assert len(data) < 30_000
    assert (pixels(data) == np.asarray(picture)).all()
    assert size_of(data) == picture.size
    with pytest.raises(RowError):
        decode(data[:-20])


def clip_of_all(picture, side):
    """OpenCLIP's preprocessing by its definition: the shortest side scaled, then the middle."""
    width, height = picture.size
    scale = side / min(picture.size)
    size = (side, int(height * scale)) if width <= height else (int(width * scale), side)
    left, top = (round((n - side) / 2) for n in size)
    scaled = picture.resize(size, Image.Resampling.BICUBIC)
    return scaled.crop((left, top, left + side, top + side))


@pytest.mark.parametrize(
    "size", [(20, 3001), (3001, 20), (40, 500), (500, 40), (90, 4000), (64, 64)]
)
def test_a_strip_is_seen_by_clip_as_if_all_of_it_were_scaled(size):
    """Without black and white: PIL rounds between two passes, whose order depends on the size."""
    picture = noise(size).point(lambda value: 64 + value // 2)
    found, all_of_it = for_clip(picture, 32), clip_of_all(picture, 32)
    assert np.abs(np.asarray(found).astype(int) - np.asarray(all_of_it)).max() <= 1


def test_a_strip_takes_no_more_memory_than_its_pixels(monkeypatch):
    """No picture on the way is larger than what was decoded."""
    made, resize = [], Image.Image.resize

    def watched(picture, size, *args, **kwargs):
        made.append(size[0] * size[1])
        return resize(picture, size, *args, **kwargs)

    picture = decode(encoded(Image.new("L", (64, 200_000), 128), "PNG"))
    monkeypatch.setattr(Image.Image, "resize", watched)
    for small in (for_clip(picture, 224), centre_square(picture, 64), shortest_side(picture, 64)):
        assert min(small.size) in (64, 224)
    assert max(made) <= 64 * 200_000


def tiff(bits, kind, data, side=4):
    """A grey TIFF. ``kind``: 1 unsigned, 2 signed, 3 floating point."""
    fields = [(256, side), (257, side), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1)]
    fields += [(278, side), (279, len(data)), (339, kind)]
    table = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in fields)
    start = b"II*\0" + struct.pack("<I", 8 + len(data)) + data
    return start + struct.pack("<H", len(fields)) + table + bytes(4)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_any_depth_up_to_sixteen_bits_has_white_for_its_largest_value(bits):
    assert (pixels(tiff(bits, 1, b"\xff" * (2 * bits))) == 255).all()


@pytest.mark.parametrize("bits", [12, 32])
def test_a_depth_that_would_be_read_wrongly_is_refused(bits):
    """PIL has 4,095 of 12 bits for 4,095 of 65,535: black instead of white."""
    for read in (decode, size_of) if bits == 12 else (decode,):
        with pytest.raises(RowError) as error:
            read(tiff(bits, 1, b"\xff" * (2 * bits)))
        assert error.value.reason == Reason.IMAGE_DEPTH


def test_a_jpeg_of_twelve_bits_is_refused_for_its_depth():
    data = bytearray(JPEG)
    at = data.index(b"\xff\xc0")
    data[at + 4] = 12
    with pytest.raises(RowError) as error:
        decode(bytes(data))
    assert error.value.reason == Reason.IMAGE_DEPTH
