"""Encoded pictures → 8-bit RGB, and to the side a stage trains on.

PIL is imported when asked; what it raises on garbage is turned into BadRow here and nowhere else.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipelines.data.rows import BadRow, Reason

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""PIL opens dozens more, some by running another program."""

MAX_PIXELS = 2**26

PNG_END = b"IEND\xaeB`\x82"
"""A PNG's last chunk. PIL is content once it has the rows, though their checksums come after."""


def size_of(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height as stored, from the header alone: Exif may turn the picture yet.

    Raises:
        BadRow: Empty, of no known format, or a bomb of more than ``max_pixels``.
    """
    with _objections():
        return _open(data, max_pixels).size


def decode(data: bytes, max_pixels: int = MAX_PIXELS, side: int | None = None) -> Image.Image:
    """Encoded bytes → an upright 8-bit RGB picture.

    Transparency is laid on white, 16 bits are scaled to 8, of an animation the first frame is
    taken; colour profiles are ignored.

    Args:
        data: A whole JPEG, PNG, WebP, GIF, BMP or TIFF.
        max_pixels: Checked against the header before anything is decoded.
        side: The shortest side that will be asked for. A JPEG is then decoded at 1/2, 1/4 or 1/8,
            never below twice this side, so that what follows still resamples well.

    Raises:
        BadRow: As :func:`size_of`; or the picture is damaged, cut short or of another depth.
    """
    from PIL import Image

    with _objections():
        picture = _open(data, max_pixels)
        if side and picture.format in ("JPEG", "MPO"):
            scale = 2 * side / min(picture.size)
            width, height = (max(1, round(n * scale)) for n in picture.size)
            picture.draft(None, (width, height))
        picture.load()
        if picture.format == "PNG" and PNG_END not in data:
            raise BadRow(Reason.IMAGE_BROKEN, "cut short: a PNG without its end")
        turn = _turn(picture)
        if picture.mode.startswith("I;16"):
            picture = _eight_bits(picture)
        elif picture.mode in ("I", "F"):
            raise BadRow(Reason.IMAGE_DEPTH, f"mode {picture.mode}")
        if picture.has_transparency_data:
            colour = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour)
        picture = picture.convert("RGB")
        return picture if turn is None else picture.transpose(turn)


def shortest_side(picture: Image.Image, side: int) -> Image.Image:
    """Scales to a shortest side, antialiased; ValueError if the picture is smaller."""
    _check_side(picture, side)
    scale = side / min(picture.size)
    width, height = (max(side, round(n * scale)) for n in picture.size)
    return _resize(picture, (width, height), (0, 0, *picture.size))


def centre_square(picture: Image.Image, side: int) -> Image.Image:
    """The square in the middle, scaled to a side, antialiased; ValueError if it is smaller."""
    _check_side(picture, side)
    edge = min(picture.size)
    left, top = ((n - edge) / 2 for n in picture.size)
    return _resize(picture, (side, side), (left, top, left + edge, top + edge))


def for_clip(picture: Image.Image, side: int) -> Image.Image:
    """What OpenCLIP's own preprocessing makes of a picture, short of scaling its values.

    Smaller ones are enlarged, as CLIP does.
    """
    from PIL import Image

    width, height = picture.size
    if width <= height:
        size = (side, int(side * height / width))
    else:
        size = (int(side * width / height), side)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    scaled = picture.resize(size, Image.Resampling.BICUBIC)
    return scaled.crop((left, top, left + side, top + side))


def _resize(
    picture: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]
) -> Image.Image:
    from PIL import Image

    return picture.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def _check_side(picture: Image.Image, side: int) -> None:
    if min(picture.size) < side:
        raise ValueError(
            f"a picture of {picture.width}×{picture.height} would be enlarged to {side}; "
            f"refuse those below min_side {side} first"
        )


def _open(data: bytes, max_pixels: int) -> Image.Image:
    from PIL import Image

    if not data:
        raise BadRow(Reason.IMAGE_EMPTY)
    picture = Image.open(io.BytesIO(data), formats=FORMATS)
    if picture.width * picture.height > max_pixels:
        raise BadRow(Reason.IMAGE_PIXELS, f"{picture.width}×{picture.height}")
    return picture


@contextmanager
def _objections() -> Iterator[None]:
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except (BadRow, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BadRow(Reason.IMAGE_UNKNOWN) from error
    except Image.DecompressionBombError as error:
        raise BadRow(Reason.IMAGE_PIXELS, error) from error
    except Exception as error:  # on garbage, PIL's decoders raise almost anything
        raise BadRow(Reason.IMAGE_BROKEN, f"{type(error).__name__}: {error}") from error


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """What makes the picture upright; an Exif that cannot be read turns nothing."""
    from PIL import ExifTags, Image

    to = Image.Transpose
    upright = {
        2: to.FLIP_LEFT_RIGHT,
        3: to.ROTATE_180,
        4: to.FLIP_TOP_BOTTOM,
        5: to.TRANSPOSE,
        6: to.ROTATE_270,
        7: to.TRANSVERSE,
        8: to.ROTATE_90,
    }
    try:
        return upright.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as above; the pixels are sound, and the tag is only a hint
        return None


def _eight_bits(picture: Image.Image) -> Image.Image:
    """16-bit grey, in any byte order, to 8: PIL's own conversion clips at 255."""
    import numpy as np
    from PIL import Image

    values = np.asarray(picture).astype(np.uint32)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
