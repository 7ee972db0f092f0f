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

SIDE = 64
"""Side of the masks in pixels; every attention layer resizes them to its own resolution."""

STRENGTH = 0.4
"""Default w' of a phrase."""

FORMATS = ("PNG", "JPEG", "WEBP")
"""Formats accepted from untrusted senders: Pillow starts external programs for some others."""

KEYS = {"phrase", "where", "strength"}


def parse_phrases(
    painted: Sequence[str],
    prompts: Sequence[str],
    strength: float,
    then: Sequence[str] | None = None,
) -> list[list[Phrase]]:
    """Parse ``PHRASE=WHERE`` arguments of a command line.

    Args:
        painted: such as ``a cat=0,0,0.5,1``, or with the path of a mask image.
        prompts: every phrase is painted in all prompts that contain it as whole words.
        strength: w' of all phrases.
        then: second prompt of each picture, which may have the phrase instead.

    Returns:
        The phrases of each prompt.

    Raises:
        ValueError: An argument is malformed, or no prompt contains its phrase.
    """
    found: list[list[Phrase]] = [[] for _ in prompts]
    for text in painted:
        words, equals, where = text.rpartition("=")
        if not equals or not words.strip():
            raise ValueError(f"{text!r} paints nothing: write PHRASE=WHERE, as 'a cat=0,0,0.5,1'")
        phrase = Phrase(words.strip(), mask(where.strip()), strength)
        texts = [prompts] if then is None else [prompts, then]
        holders = [i for i, each in enumerate(zip(*texts, strict=True)) if _holds(words, each)]
        if not holders:
            raise ValueError(
                f"phrase {words.strip()!r} is in no prompt; paint whole words as a prompt has them"
            )
        for i in holders:
            found[i].append(phrase)
    return found


def _holds(words: str, texts: Sequence[str]) -> bool:
    return any(occurrences(words, text) for text in texts)


def phrases_from_json(painted: Sequence[Mapping[str, Any]]) -> list[Phrase]:
    """Phrases from ``{phrase, where, strength}`` objects.

    ``where`` is a box or a base64 image, never a path: the sender is untrusted, so no file is read.

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
            place = image_mask(decode_image(where))
        else:
            place = box_mask(where.split(",") if isinstance(where, str) else where)
        found.append(Phrase(phrase.strip(), place, float(strength)))
    return found


def mask(where: str) -> Tensor:
    """Mask [SIDE, SIDE] from ``left,top,right,bottom`` in [0, 1], or from the path of an image."""
    parts = where.split(",")
    return box_mask(parts) if len(parts) == 4 else image_mask(open_image(Path(where)))


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
    return repr(",".join(map(str, parts)) if isinstance(parts, list | tuple) else parts)


def open_image(path: Path) -> Any:
    """Open an image file as upright RGB; ValueError if it cannot be read."""
    from PIL import Image

    try:
        return _upright(Image.open(path))
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a readable image ({error})") from error


def decode_image(text: str) -> Any:
    """Decode a base64 PNG, JPEG or WebP as upright RGB; ValueError for anything else."""
    from PIL import Image

    try:
        return _upright(Image.open(io.BytesIO(base64.b64decode(text)), formats=FORMATS))
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{text[:40]!r} is not an image ({error}); give a PNG, JPEG or WebP as base64"
        ) from error


def _upright(image: Any) -> Any:
    """As RGB, turned as its Exif data says."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(image).convert("RGB")


def encode_png(pixels: Any) -> str:
    """Encode pixels, uint8 [R, R, 3], as a base64 PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
