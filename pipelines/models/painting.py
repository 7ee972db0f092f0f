"""Parsing of painted phrases and images: ``PHRASE=WHERE`` on a command line, or JSON."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ediffi_core.control import Phrase, occurrences
from pipelines.rgb import FORMATS, to_rgb

SIDE = 64
"""Side of the masks in pixels; every attention layer resizes them to its own resolution."""

STRENGTH = 0.4
"""Default w' of a phrase."""

SENT_FORMATS = ("PNG", "JPEG", "WEBP")
"""Formats accepted from untrusted senders."""

KEYS = {"phrase", "where", "strength"}


def split_argument(text: str) -> tuple[str, str]:
    """Phrase and place of ``PHRASE=WHERE``, an argument of a command line.

    Raises:
        ValueError: One of them is missing.
    """
    words, equals, where = (part.strip() for part in text.rpartition("="))
    if not equals or not words or not where:
        raise ValueError(f"{text!r} paints nothing: write PHRASE=WHERE, as 'a cat=0,0,0.5,1'")
    return words, where


def holders(words: str, prompts: Sequence[str], then: str | None = None) -> list[int]:
    """Numbers of the prompts in which a phrase is painted: those that have it as whole words.

    Args:
        then: second prompt of all pictures, which may have the phrase instead.

    Raises:
        ValueError: No prompt has it.
    """
    if then is not None and occurrences(words, then):
        return list(range(len(prompts)))
    found = [i for i, prompt in enumerate(prompts) if occurrences(words, prompt)]
    if not found:
        raise ValueError(
            f"phrase {words!r} is in no prompt; paint whole words as a prompt has them"
        )
    return found


def phrases_from_json(
    painted: Sequence[Mapping[str, Any]], pixels: int | None = None
) -> list[Phrase]:
    """Phrases from ``{phrase, where, strength}`` objects.

    ``where`` is a box or a base64 image, never a path: the sender is untrusted, so no file is read.

    Args:
        pixels: as of :func:`decode_image`.

    Raises:
        ValueError: An object is malformed.
    """
    found = []
    for raw in painted:
        if not isinstance(raw, Mapping) or not {"phrase", "where"} <= set(raw) <= KEYS:
            raise ValueError(
                f"{str(raw)[:80]!r} paints nothing: write "
                '{"phrase": "a cat", "where": [0, 0, 0.5, 1], "strength": 0.4}'
            )
        phrase, where, strength = raw["phrase"], raw["where"], raw.get("strength", STRENGTH)
        if not isinstance(phrase, str) or not phrase.strip():
            raise ValueError(f"phrase {phrase!r} is not a text; write words of the prompt")
        if not isinstance(strength, int | float) or not 0 <= strength < math.inf:
            raise ValueError(
                f"the strength of {phrase!r} is {strength!r}; write a number of 0 or more"
            )
        if isinstance(where, str) and where.count(",") != 3:
            place = image_mask(decode_image(where, "black", pixels))
        else:
            place = box_mask(where.split(",") if isinstance(where, str) else where)
        found.append(Phrase(phrase.strip(), place, float(strength)))
    return found


def image_mask(image: Any) -> Tensor:
    """Mask [SIDE, SIDE]: 1 where a PIL image is bright, else 0."""
    gray = image.convert("L").resize((SIDE, SIDE))
    return torch.from_numpy((np.asarray(gray) > 127).astype(np.float32))


def box_mask(parts: Sequence[Any]) -> Tensor:
    """Mask [SIDE, SIDE]: 1 inside (left, top, right, bottom), fractions of the sides."""
    try:
        left, top, right, bottom = (float(p) for p in parts)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{_quoted(parts)} is not a box: write left,top,right,bottom from 0 to 1"
        ) from error
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(
            f"box {_quoted(parts)} is empty or leaves the picture; its numbers go from 0 to 1"
        )
    out = torch.zeros(SIDE, SIDE)
    rows = slice(round(top * SIDE), max(round(bottom * SIDE), round(top * SIDE) + 1))
    out[rows, round(left * SIDE) : max(round(right * SIDE), round(left * SIDE) + 1)] = 1
    return out


def _quoted(parts: Any) -> str:
    given = ",".join(map(str, parts)) if isinstance(parts, list | tuple) else parts
    return repr(given)[:80]


def open_image(path: Path, behind: str = "white") -> Any:
    """Open an image file as upright RGB; ValueError if it cannot be read.

    Args:
        behind: as of :func:`decode_image`.
    """
    from PIL import Image

    try:
        return _upright(Image.open(path, formats=FORMATS), behind)
    except MemoryError:
        raise
    except Exception as error:  # PIL's decoders raise almost anything on garbage
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} is not a readable image ({why})") from error


def decode_image(text: str, behind: str = "white", pixels: int | None = None) -> Any:
    """Decode a base64 PNG, JPEG or WebP as upright RGB; ValueError for anything else.

    Args:
        behind: colour behind transparent pixels: ``white`` as in training; ``black`` for a mask,
            which is then dark where nothing was drawn on it.
        pixels: refuse a picture that has more by its header, before it is decoded; no limit by
            default.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        data = base64.b64decode("".join(text.split()), validate=True)
        image = Image.open(io.BytesIO(data), formats=SENT_FORMATS)
        if pixels is None or image.width * image.height <= pixels:
            return _upright(image, behind)
    except MemoryError:
        raise
    except Exception as error:  # as above
        is_unknown = isinstance(error, UnidentifiedImageError)
        why = "its format is none of these" if is_unknown else error
        raise ValueError(
            f"{text[:40]!r} is not an image ({why}); give a PNG, JPEG or WebP as base64"
        ) from error
    raise ValueError(
        f"{text[:40]!r} has {image.width}×{image.height} pixels; give {pixels:,} at most"
    )


def _upright(image: Any, behind: str) -> Any:
    """As RGB, turned as its Exif data says."""
    from PIL import ImageOps

    return to_rgb(ImageOps.exif_transpose(image), behind)


def encode_png(pixels: Any) -> str:
    """Encode pixels, uint8 [R, R, 3] or grey [R, R], as a base64 PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
