"""Painted phrases and pictures as people give them: ``PHRASE=WHERE`` on a command line, or JSON."""

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

SIDE = 64  # of the masks; each attention layer resizes them to its own
STRENGTH = 0.4
FORMATS = ("PNG", "JPEG", "WEBP")  # of pictures that strangers send: Pillow runs programs for some
KEYS = {"phrase", "where", "strength"}


def parse(painted: Sequence[str], prompts: Sequence[str], strength: float) -> list[list[Phrase]]:
    """Each phrase for every prompt that has it, as whole words; ValueError if none has."""
    found: list[list[Phrase]] = [[] for _ in prompts]
    for text in painted:
        words, equals, where = text.rpartition("=")
        if not equals or not words.strip():
            raise ValueError(f"{text!r} paints nothing: write PHRASE=WHERE, as 'a cat=0,0,0.5,1'")
        phrase = Phrase(words.strip(), mask(where.strip()), strength)
        holders = [i for i, p in enumerate(prompts) if occurrences(words, p)]
        if not holders:
            raise ValueError(
                f"phrase {words.strip()!r} is in no prompt; paint whole words as a prompt has them"
            )
        for i in holders:
            found[i].append(phrase)
    return found


def described(painted: Sequence[Mapping[str, Any]]) -> list[Phrase]:
    """``{phrase, where, strength}`` each; reads no file, as a stranger may have written it."""
    found = []
    for raw in painted:
        if not isinstance(raw, Mapping) or not {"phrase", "where"} <= set(raw) <= KEYS:
            raise ValueError(
                f"{str(raw)[:80]!r} paints nothing: write "
                '{"phrase": "a cat", "where": [0, 0, 0.5, 1], "strength": 0.4}'
            )
        phrase, where, strength = raw["phrase"], raw["where"], raw.get("strength", STRENGTH)
        if not isinstance(phrase, str) or not phrase.strip():
            raise ValueError(f"phrase {phrase!r} is no text; write words of the prompt")
        if not isinstance(strength, int | float) or not 0 <= strength < math.inf:
            raise ValueError(
                f"the strength of {phrase!r} is {strength!r}; write a number from 0 on"
            )
        if isinstance(where, str) and where.count(",") != 3:
            place = bright(decoded(where))
        else:
            place = box(where.split(",") if isinstance(where, str) else where)
        found.append(Phrase(phrase.strip(), place, float(strength)))
    return found


def mask(where: str) -> Tensor:
    """A box (left, top, right, bottom in parts of the sides), or a picture, bright if painted."""
    parts = where.split(",")
    return box(parts) if len(parts) == 4 else bright(picture(Path(where)))


def bright(image: Any) -> Tensor:
    gray = image.convert("L").resize((SIDE, SIDE))
    return torch.from_numpy((np.asarray(gray) > 127).astype(np.float32))


def box(parts: Sequence[Any]) -> Tensor:
    try:
        left, top, right, bottom = (float(p) for p in parts)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{_words(parts)} is no box: write left,top,right,bottom in 0 to 1"
        ) from error
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(
            f"box {_words(parts)} is empty or leaves the picture; its numbers go from 0 to 1"
        )
    out = torch.zeros(SIDE, SIDE)
    rows = slice(round(top * SIDE), max(round(bottom * SIDE), round(top * SIDE) + 1))
    out[rows, round(left * SIDE) : max(round(right * SIDE), round(left * SIDE) + 1)] = 1
    return out


def _words(parts: Any) -> str:
    return repr(",".join(map(str, parts)) if isinstance(parts, list | tuple) else parts)


def picture(path: Path) -> Any:
    """A PIL picture; ValueError if the file is none."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{path} is no picture that can be read ({error})") from error


def decoded(text: str) -> Any:
    """A PIL picture of a base64 text; ValueError if it is none."""
    from PIL import Image

    try:
        return Image.open(io.BytesIO(base64.b64decode(text)), formats=FORMATS).convert("RGB")
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{text[:40]!r} is no picture ({error}); give a PNG, JPEG or WebP as base64"
        ) from error


def encoded(pixels: Any) -> str:
    """uint8 [R, R, 3] as a PNG in base64."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
