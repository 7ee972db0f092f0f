"""What callers give besides prompts, checked and as the core takes it: texts, pictures, masks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ediffi_core.cascade import CascadeStage
from ediffi_core.control import (
    Control,
    Keep,
    Phrase,
    Start,
    check_start,
    check_switch,
    occurrences,
)

SIGMA_PER_PIXEL = 2.0 / 16
"""Default first noise level of image-to-image, divided by the side of the base's pictures."""


def default_sigma(side: int) -> float:
    """First noise level of image-to-image, unless one is given: 2.0 for a base of 16 pixels.

    There, on the demo, 77 % of pictures show what the prompt asks for and 58 % keep the ground of
    the given picture: the highest sum (tests/benchmarks/RESULTS.md). The same layout needs noise in
    proportion to the side, because a mean over k × k pixels has a k-th of the noise
    (arXiv:2301.11093, section 3).
    """
    return SIGMA_PER_PIXEL * side


def check_options(
    *,
    image: Any = None,
    sigma: float | None = None,
    mask: Any = None,
    variation: Any = None,
    styles: int = 0,
    style_weights: Sequence[float] | None = None,
    then: Any = None,
    switch: float | None = None,
    switch_sigma: float | None = None,
    sigma_min: float,
    sigma_max: float,
) -> None:
    """Check the options of one call against each other, before anything is encoded.

    Args:
        image: PIL image, as ``mask``.
        styles: number of style references.
        sigma_min: of the base stage, as ``sigma_max``.

    Raises:
        ValueError: An option is invalid, or lacks the one that it belongs to.
    """
    for name, given, needs, what in (
        ("sigma", sigma, image, "`image`, the picture to start from"),
        ("mask", mask, image, "`image`, the picture to keep a part of"),
        ("style_weights", style_weights, styles or None, "`style`"),
        ("switch", switch, then, "`then`, the second prompt"),
        ("switch_sigma", switch_sigma, then, "`then`, the second prompt"),
    ):
        if given is not None and needs is None:
            raise ValueError(f"`{name}` is given without {what}; give both, or neither")
    if styles and variation is not None:
        raise ValueError(
            "`style` and `variation` both take the place of CLIP's image embedding; give one"
        )
    if style_weights is not None:
        is_finite = all(math.isfinite(w) for w in style_weights)
        if len(style_weights) != styles or not is_finite or not sum(style_weights) > 0:
            raise ValueError(
                f"`style_weights` are {list(style_weights)} for {styles} style picture"
                f"{'s' * (styles > 1)}; write one number each, with a sum above 0"
            )
    if sigma is not None:
        check_start(sigma, sigma_min, sigma_max)
    if then is not None:
        check_switch(switch, switch_sigma)
    if mask is not None:
        _check_mask(mask, image)


def _check_mask(mask: Any, image: Any) -> None:
    if mask.size != image.size:
        got, wanted = ("{}×{}".format(*i.size) for i in (mask, image))
        raise ValueError(f"`mask` has {got} pixels and `image` {wanted}; give a mask of its size")
    drawn = _mask(mask, min(mask.size))
    if not drawn.any():
        raise ValueError(
            "`mask` is dark everywhere, which keeps the whole picture; make it bright where to draw"
        )


def texts_of(name: str, given: str | Sequence[str] | None, count: int) -> list[str]:
    """One text for each of the prompts: a single one is for all, and None is no text.

    Raises:
        ValueError: There are not as many as prompts.
    """
    texts = [given or ""] * count if given is None or isinstance(given, str) else list(given)
    if len(texts) != count:
        raise ValueError(f"`{name}` has {len(texts)} texts for {count} prompts; give 1 or {count}")
    return texts


def phrases_of(paint: Sequence[Sequence[Phrase]] | None, count: int) -> Sequence[Sequence[Phrase]]:
    """The painted phrases of each prompt; ValueError if there are not as many as prompts."""
    phrases = paint if paint is not None else [()] * count
    if len(phrases) != count:
        raise ValueError(f"`paint` has phrases for {len(phrases)} prompts, but there are {count}")
    return phrases


def picture_controls(
    image: Any, mask: Any, sigma: float | None, base: CascadeStage, side: int
) -> tuple[Start | None, Keep | None]:
    """A picture to start from, and a part of it to keep.

    Args:
        image: PIL image. Its centre square is used, as in training.
        mask: PIL image of the same size, or None: bright where to draw, dark where to keep.
        sigma: first noise level; by default :func:`default_sigma` without a mask, and pure noise
            in the drawn region with one.
        side: of the last stage's pictures.
    """
    if image is None:
        return None, None
    picture = _picture(image, side)
    if sigma is None and mask is None:
        sigma = min(max(default_sigma(base.resolution), 2 * base.sigma_min), base.sigma_max)
    start = None if sigma is None else Start(picture=picture, sigma=sigma)
    keep = None if mask is None else Keep(picture=picture, drawn=_mask(mask, side))
    return start, keep


def split_phrases(
    phrases: Sequence[Sequence[Phrase]], prompts: Sequence[str], then: Sequence[str]
) -> tuple[list[list[Phrase]], list[list[Phrase]]]:
    """Painted phrases for prompts and for their second prompts: for each, those that it has.

    A phrase that neither has is left to the first, where painting refuses it.
    """
    first, after = [], []
    for painted, prompt, second in zip(phrases, prompts, then, strict=True):
        later = [p for p in painted if occurrences(p.text, second)]
        first.append([p for p in painted if occurrences(p.text, prompt) or p not in later])
        after.append(later)
    return first, after


def ineffective(control: Control, stages: Sequence[CascadeStage]) -> Iterator[str]:
    """What of the control changes nothing in these stages, each in one line."""
    base, *later = stages
    highest = control.start.sigma if control.start else None
    if control.negative is not None and not (
        base.is_guided(highest) or any(stage.is_guided() for stage in later)
    ):
        yield "`negative` has no effect without guidance; set `guidance`"
    if control.switch:
        sigmas = base.sigmas(highest)
        level = control.switch.level(sigmas)
        if level < float(sigmas[-2]):
            yield "`then` has no effect: the switch comes after the last step"
        elif level >= float(sigmas[0]):
            yield "the first prompt has no effect: the switch comes before the first step"
    if control.keep and bool((control.keep.drawn == 1).all()):
        yield "`mask` has no effect: it is bright everywhere, which keeps nothing of `image`"


def _picture(image: Any, side: int) -> Tensor:
    """The centre square of a PIL image, [1, 3, side, side] in [-1, 1]."""
    from PIL import Image, ImageOps

    square = ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None]
    return pixels.float() / 127.5 - 1


def _mask(mask: Any, side: int) -> Tensor:
    """The centre square of a mask, [1, 1, side, side] in [0, 1]; 1 where it is bright."""
    from PIL import Image, ImageOps

    bright = mask.convert("L").point(lambda value: 255 * (value > 127))
    square = ImageOps.fit(bright, (side, side), Image.Resampling.BOX)
    return torch.from_numpy(np.array(square))[None, None].float() / 255
