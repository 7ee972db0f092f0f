"""Decode pictures to 8-bit RGB, and scale them to the side that a stage trains on.

PIL is imported inside the functions. Whatever it raises on garbage becomes a RowError here.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from pipelines.data.rows import Reason, RowError
from pipelines.rgb import FORMATS, to_rgb
from pipelines.spec.data import MAX_PIXELS

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")

BITS_PER_SAMPLE = 258  # TIFF's tag

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND\xaeB`\x82"
"""A PNG's last chunk. PIL stops at the last pixel row, before its checksum."""

PNG_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
"""Chunks of text and colour profiles: PIL refuses a picture in which one is over 1 MB."""

DEPTHS = {1, 2, 4, 8, 16}
"""Accepted bits per channel, scaled to 8. PIL also opens 12 bits, but sixteen times too dark."""

STRIP_RATIO = 8
"""Aspect ratio above which a picture is cropped before CLIP's preprocessing scales it: a PNG of
200 kB may have a million rows."""

BLANK_BYTES = 64
"""An arithmetic-coded stream never ends in this many zeros."""


def size_of(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height as stored, read from the header only. Exif may still rotate the picture.

    Raises:
        RowError: The picture is empty, of unknown format, or has more than ``max_pixels``.
    """
    with _as_row_errors():
        return _retry_without_text_chunks(data, lambda data: _open(data, max_pixels).size)


def decode(data: bytes, max_pixels: int = MAX_PIXELS, side: int | None = None) -> Image.Image:
    """Decode a picture to upright 8-bit RGB.

    Transparency is composited on white, 16 bits are scaled to 8, an animation is represented by
    its first frame, and colour profiles are ignored.

    Args:
        data: A complete JPEG, PNG, WebP, GIF, BMP or TIFF.
        max_pixels: Largest allowed width × height, checked against the header before decoding.
        side: The shortest side needed later, in pixels. A large JPEG is then decoded at 1/2, 1/4
            or 1/8 of its size, but never below twice this side, so that it still resamples well.

    Raises:
        RowError: As for :func:`size_of`; or the picture is damaged, cut short, or has an
            unsupported bit depth.
    """

    def loaded(data: bytes) -> Image.Image:
        picture = _open(data, max_pixels)
        if side and picture.format in ("JPEG", "MPO"):
            scale = 2 * side / min(picture.size)
            width, height = (max(1, round(n * scale)) for n in picture.size)
            picture.draft(None, (width, height))
        picture.load()
        return picture

    with _as_row_errors():
        picture = _retry_without_text_chunks(data, loaded)
        _check_end(data, str(picture.format))
        turn = _turn(picture)
        if picture.mode in ("I", "F"):
            raise RowError(Reason.IMAGE_DEPTH, f"mode {picture.mode}")
        picture = to_rgb(picture)
        return picture if turn is None else picture.transpose(turn)


def shortest_side(picture: Image.Image, side: int) -> Image.Image:
    """Scale a picture to a shortest side, antialiased; ValueError if it is smaller."""
    _check_side(picture, side)
    scale = side / min(picture.size)
    width, height = (max(side, round(n * scale)) for n in picture.size)
    return _resize(picture, (width, height), (0, 0, *picture.size))


def centre_square(picture: Image.Image, side: int) -> Image.Image:
    """Crop the centre square and scale it, antialiased; ValueError if the picture is smaller."""
    _check_side(picture, side)
    edge = min(picture.size)
    left, top = ((n - edge) / 2 for n in picture.size)
    return _resize(picture, (side, side), (left, top, left + edge, top + edge))


def for_clip(picture: Image.Image, side: int) -> Image.Image:
    """Resize and crop as OpenCLIP's own preprocessing does, but keep 8-bit values.

    Smaller pictures are enlarged, as in CLIP.
    """
    from PIL import Image

    width, height = picture.size
    if width <= height:
        size = (side, int(side * height / width))
    else:
        size = (int(side * width / height), side)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    if max(size) > STRIP_RATIO * side:  # same result, without scaling the whole strip
        edge = min(width, height)
        scale = max(width, height) / max(size)
        start = max(left, top) * scale
        margin = math.ceil(2 * max(1, scale)) + 1  # the support of the filter beyond the square
        first = max(0, math.floor(start) - margin)
        last = min(max(width, height), math.ceil(start + side * scale) + margin)
        box = (start - first, start - first + side * scale)
        if width <= height:
            part = picture.crop((0, first, edge, last))
            return part.resize((side, side), Image.Resampling.BICUBIC, (0, box[0], edge, box[1]))
        part = picture.crop((first, 0, last, edge))
        return part.resize((side, side), Image.Resampling.BICUBIC, (box[0], 0, box[1], edge))
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
            f"filter out pictures below min_side {side} first"
        )


def _open(data: bytes, max_pixels: int) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise RowError(Reason.IMAGE_EMPTY)
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        _, bits = _jpeg_scan(data)
        if bits and bits not in DEPTHS:
            raise RowError(Reason.IMAGE_DEPTH, f"{bits} bits") from None
        raise
    if picture.width * picture.height > max_pixels:
        raise RowError(Reason.IMAGE_PIXELS, f"{picture.width}×{picture.height}")
    if picture.format == "TIFF":
        depths: tuple[int, ...] = picture.tag_v2.get(BITS_PER_SAMPLE, (1,))  # type: ignore[attr-defined]
        if not DEPTHS.issuperset(depths):
            raise RowError(Reason.IMAGE_DEPTH, f"{max(depths)} bits")
    return picture


def _retry_without_text_chunks(data: bytes, read: Callable[[bytes], T]) -> T:
    """Read a picture; if PIL refuses a PNG for its text chunks, read it again without them."""
    try:
        return read(data)
    except ValueError:
        if not data.startswith(PNG_START):
            raise
        parts, at = [PNG_START], len(PNG_START)
        while at < len(data):
            end = at + 12 + int.from_bytes(data[at : at + 4], "big")
            if data[at + 4 : at + 8] not in PNG_TEXT_CHUNKS:
                parts.append(data[at:end])
            at = end
        return read(b"".join(parts))


def _check_end(data: bytes, format: str) -> None:
    """RowError if a picture lacks its end: PIL would decode zeros in its place as grey pixels."""
    if format == "PNG" and PNG_END not in data:
        raise RowError(Reason.IMAGE_BROKEN, "cut short: a PNG without its end")
    if format in ("JPEG", "MPO") and data.find(b"\xff\xd9", _jpeg_scan(data)[0]) < 0:
        raise RowError(Reason.IMAGE_BROKEN, "cut short: a JPEG without its end")
    if format == "WEBP":
        at = 12
        while at + 8 <= len(data):
            end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
            if data[at : at + 4] == b"VP8 " and not any(data[end - BLANK_BYTES : end]):
                raise RowError(Reason.IMAGE_BROKEN, "cut short: a WebP that ends in zeros")
            at = end + end % 2


def _jpeg_scan(data: bytes) -> tuple[int, int]:
    """Find a JPEG's first scan.

    The header before it may hold a whole JPEG as a thumbnail.

    Returns:
        The offset of the first scan in bytes, and the bits per channel; 0 bits if it is no JPEG.
    """
    at, bits = 2, 0
    while data.startswith(b"\xff\xd8") and 0 <= (at := data.find(b"\xff", at)) < len(data) - 4:
        marker = data[at + 1]
        if marker == 0xDA:
            return at, bits
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9:  # markers without a length
            at += 1 if marker == 0xFF else 2
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits = data[at + 4]
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return len(data), bits


@contextmanager
def _as_row_errors() -> Iterator[None]:
    """Turn whatever PIL raises into RowError."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except (RowError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise RowError(Reason.IMAGE_UNKNOWN) from error
    except Image.DecompressionBombError as error:
        raise RowError(Reason.IMAGE_PIXELS, error) from error
    except Exception as error:  # PIL's decoders raise almost anything on garbage
        raise RowError(Reason.IMAGE_BROKEN, f"{type(error).__name__}: {error}") from error


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """The transposition that makes the picture upright; None if Exif is absent or unreadable."""
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
    except Exception:  # as above; the pixels are fine, and the tag is only a hint
        return None
