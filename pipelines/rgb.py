"""Pictures of any mode as 8-bit RGB: the same for training data and for pictures to draw from."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""The accepted formats. PIL opens dozens more, some by running another program."""


def to_rgb(picture: Image.Image, behind: str = "white") -> Image.Image:
    """A PIL image as RGB: 16 bits scaled to 8, transparency composited on a colour.

    Args:
        behind: the colour behind transparent pixels.

    Raises:
        ValueError: Its values are of 32 bits, which have no fixed range.
    """
    from PIL import Image

    if picture.mode.startswith("I;16"):
        picture = _eight_bits(picture)
    elif picture.mode in ("I", "F"):
        raise ValueError(f"mode {picture.mode}")
    if picture.has_transparency_data:
        colour = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", colour.size, behind), colour)
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Scale 16-bit grey, in any byte order, to 8 bits: PIL's own conversion clips at 255."""
    import numpy as np
    from PIL import Image

    values = np.asarray(picture).astype(np.uint32)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
