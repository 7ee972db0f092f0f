"""Painted phrases as people write them on a command line: ``PHRASE=WHERE``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ediffi_core.control import Phrase

SIDE = 64  # of the masks; each attention layer resizes them to its own


def parse(painted: Sequence[str], prompts: Sequence[str], strength: float) -> list[list[Phrase]]:
    """Each phrase for every prompt that has it; ValueError if none has."""
    found: list[list[Phrase]] = [[] for _ in prompts]
    for text in painted:
        words, equals, where = text.rpartition("=")
        if not equals or not words.strip():
            raise ValueError(f"{text!r} paints nothing: write PHRASE=WHERE, as 'a cat=0,0,0.5,1'")
        phrase = Phrase(words.strip(), mask(where.strip()), strength)
        holders = [i for i, p in enumerate(prompts) if words.strip().lower() in p.lower()]
        if not holders:
            raise ValueError(
                f"phrase {words.strip()!r} is in no prompt; paint words as a prompt has them"
            )
        for i in holders:
            found[i].append(phrase)
    return found


def mask(where: str) -> Tensor:
    """A box (left, top, right, bottom in parts of the sides), or a picture, bright if painted."""
    parts = where.split(",")
    if len(parts) != 4:
        gray = picture(Path(where)).convert("L").resize((SIDE, SIDE))
        return torch.from_numpy((np.asarray(gray) > 127).astype(np.float32))
    try:
        left, top, right, bottom = (float(p) for p in parts)
    except ValueError as error:
        raise ValueError(f"{where!r} is no box: write left,top,right,bottom in 0 to 1") from error
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(
            f"box {where!r} is empty or leaves the picture; its numbers go from 0 to 1"
        )
    out = torch.zeros(SIDE, SIDE)
    rows = slice(round(top * SIDE), max(round(bottom * SIDE), round(top * SIDE) + 1))
    out[rows, round(left * SIDE) : max(round(right * SIDE), round(left * SIDE) + 1)] = 1
    return out


def picture(path: Path) -> Any:
    """A PIL picture; ValueError if the file is none."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{path} is no picture that can be read ({error})") from error
