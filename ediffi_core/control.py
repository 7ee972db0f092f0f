"""Control of sampling: paint-with-words, style references, a change of prompt midway, negative
prompts, and a picture to start from or to keep a part of."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ediffi_core.conditioning import Conditioning, Paint
from ediffi_core.sampling import Callback, Denoise


class TokenSpans(NamedTuple):
    """A prompt, and where an encoder's tokens are in it."""

    text: str
    """The prompt after the tokenizer's cleaning; spans are character offsets in it."""

    spans: Sequence[tuple[int, int]]
    """(start, end) of every token that the encoder returns; empty for special tokens."""

    clean: Callable[[str], str] = str
    """The tokenizer's cleaning, to be applied to phrases as well."""


@dataclass(frozen=True, eq=False)
class Phrase:
    """Words of the prompt, and where in the image they should appear."""

    text: str
    """The words as the prompt has them."""

    mask: Tensor
    """[h, w] in [0, 1], 1 where the phrase should appear; all masks of a call have one size."""

    strength: float = 0.4
    """w' of eDiff-I section 4.3; 0.1 to 0.4 works well."""

    occurrence: int | None = None
    """Number of the occurrence in the prompt, from 0; None for all of them."""


def paint_with_words(
    phrases: Sequence[Sequence[Phrase]],
    prompts: Mapping[str, Sequence[TokenSpans]],
    *,
    weight: Literal["max", "std"] = "max",
) -> Paint:
    """Attention maps for paint-with-words (eDiff-I section 4.3).

    Where phrases overlap, their strengths add.

    Args:
        phrases: painted phrases of each image; may be empty for some.
        prompts: sequence (``t5``, ``clip_text``) → prompt and token spans of each image.
        weight: scale of the strength; see :class:`ediffi_core.conditioning.Paint`.

    Raises:
        ValueError: A phrase is not in its prompt, lies beyond what an encoder reads, has an empty
            mask, or a mask that differs in size from the others.
    """
    masks = [_checked(p) for picture in phrases for p in picture]
    if not prompts:
        raise ValueError("painted words need the prompts as the encoders read them, got none")
    if not masks:
        raise ValueError("nothing is painted; leave paint-with-words out instead")
    if len(sizes := {tuple(m.shape) for m in masks}) > 1:
        raise ValueError(f"masks differ in size ({sorted(sizes)}); give all of one size")
    size = masks[0].shape
    maps = {}
    for name, pictures in prompts.items():
        if len(pictures) != len(phrases):
            raise ValueError(f"{len(pictures)} prompts, but phrases for {len(phrases)} pictures")
        longest = max(len(p.spans) for p in pictures)
        maps[name] = masks[0].new_zeros(len(pictures), longest, *size)
        for row, (prompt, painted) in enumerate(zip(pictures, phrases, strict=True)):
            for phrase in painted:
                mask = phrase.mask.to(masks[0])
                for token in tokens_of(phrase, prompt, name):
                    maps[name][row, token] += phrase.strength * mask
    return Paint(maps, weight)


def _checked(phrase: Phrase) -> Tensor:
    mask = phrase.mask.float()
    if mask.ndim != 2:
        raise ValueError(
            f"the mask of {phrase.text!r} has shape {list(mask.shape)}; give [height, width]"
        )
    if not mask.isfinite().all() or mask.min() < 0 or mask.max() > 1:
        raise ValueError(f"the mask of {phrase.text!r} has values outside [0, 1]")
    if not mask.any():
        raise ValueError(f"the mask of {phrase.text!r} is empty: it paints nowhere")
    return mask


def occurrences(phrase: str, text: str) -> list[re.Match[str]]:
    """Matches of a phrase in a text: whole words, case-insensitive, with any whitespace between.

    Raises:
        ValueError: The phrase has no words.
    """
    words = phrase.split()
    if not words:
        raise ValueError("a painted phrase is empty; write words of the prompt")
    pattern = r"\s+".join(re.escape(w) for w in words)
    return list(re.finditer(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE))


def tokens_of(phrase: Phrase, prompt: TokenSpans, encoder: str) -> list[int]:
    """Indices of the tokens that overlap the phrase in the prompt.

    Raises:
        ValueError: The phrase is not in the prompt, or lies beyond what the encoder reads.
    """
    found = occurrences(prompt.clean(phrase.text), prompt.text)
    if not found:
        raise ValueError(
            f"phrase {phrase.text!r} is not in the prompt {prompt.text!r}; "
            "paint words exactly as the prompt has them"
        )
    if phrase.occurrence is not None:
        if not 0 <= phrase.occurrence < len(found):
            raise ValueError(
                f"occurrence {phrase.occurrence} of {phrase.text!r} was asked for, but the prompt "
                f"has {len(found)} (counted from 0)"
            )
        found = [found[phrase.occurrence]]
    tokens = [
        i
        for i, (start, end) in enumerate(prompt.spans)
        if any(start < m.end() and m.start() < end for m in found)
    ]
    if not tokens:
        raise ValueError(
            f"phrase {phrase.text!r} lies beyond the {len(prompt.spans)} tokens that {encoder} "
            "reads; shorten the prompt, or move the phrase forward"
        )
    return tokens


def with_style(
    cond: Conditioning,
    references: Tensor,
    weights: Sequence[float] | None = None,
    *,
    name: str = "clip_image",
) -> Conditioning:
    """Condition every image on a mixture of style references (eDiff-I section 4.2).

    The mixture is normalised to unit length, like CLIP's embeddings.

    Args:
        references: CLIP image embeddings [K, dim].
        weights: of the references; equal by default.
        name: pooled embedding to replace.

    Raises:
        ValueError: The weights or shapes do not fit.
    """
    given = [1.0] * len(references) if weights is None else weights
    shares = torch.tensor(given, dtype=torch.float32)
    if len(shares) != len(references) or not shares.sum() > 0:
        raise ValueError(
            f"{len(references)} style references need as many weights with a positive sum, "
            f"got {shares.tolist()}"
        )
    if name not in cond.pooled or references.shape[1:] != cond.pooled[name].shape[1:]:
        has = {k: v.shape[1] for k, v in cond.pooled.items()}
        raise ValueError(
            f"style references of shape {list(references.shape)} do not fit {name}: "
            f"the conditioning's pooled embeddings are {has}; give [references, dim]"
        )
    mixed = (shares.to(references)[:, None] / shares.sum() * references).sum(dim=0)
    mixed = torch.nn.functional.normalize(mixed, dim=0).expand(len(cond), -1)
    return replace(cond, pooled={**cond.pooled, name: mixed.to(cond.pooled[name])})


def switched(before: Denoise, after: Denoise, sigma: float) -> Denoise:
    """``before`` above the noise level ``sigma``, ``after`` from there down: switches prompts."""
    return lambda x, s: before(x, s) if float(s) > sigma else after(x, s)


class SwitchOnGrid:
    """As :func:`switched`, for good: churn, which raises the noise level, brings nothing back.

    It counts the steps as their callback.
    """

    def __init__(
        self,
        before: Denoise,
        after: Denoise,
        sigma: float,
        sigmas: Tensor,
        callback: Callback | None = None,
    ) -> None:
        """
        Args:
            sigmas: the solver's grid.
            callback: of the caller, called in turn.
        """
        self.before, self.after, self.sigma = before, after, sigma
        self.grid, self.callback = sigmas.tolist(), callback
        self.is_after = self.grid[0] <= sigma

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.is_after |= float(sigma) <= self.sigma
        return (self.after if self.is_after else self.before)(x, sigma)

    def stepped(self, state: dict[str, Any]) -> None:
        """Callback of the solver, after every step."""
        self.is_after |= self.grid[state["step"] + 1] <= self.sigma
        if self.callback:
            self.callback(state)


def sigma_after(sigmas: Tensor, fraction: float) -> float:
    """The noise level for :func:`switched` that is reached after a fraction of the steps.

    Infinity after no step, above every noise level that churn reaches.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
    step = round(fraction * (len(sigmas) - 1))
    return float(sigmas[step]) if step else math.inf


@dataclass(frozen=True, kw_only=True, eq=False)
class Switch:
    """Another prompt for the rest of the base stage (prompt switching); later stages get the prompt
    that the base ended with.

    Raises:
        ValueError: Not exactly one of ``fraction`` and ``sigma`` is set, or it is out of range.
    """

    cond: Conditioning
    """The second prompt, one row per image."""

    fraction: float | None = None
    """Share of the steps after which it takes over."""

    sigma: float | None = None
    """Noise level from which on it takes over."""

    def __post_init__(self) -> None:
        check_switch(self.fraction, self.sigma)

    def level(self, sigmas: Tensor) -> float:
        """The noise level for :func:`switched`, for a grid of noise levels."""
        if self.sigma is not None:
            return self.sigma
        return sigma_after(sigmas, self.fraction or 0.0)


def check_switch(fraction: float | None, sigma: float | None) -> None:
    """Raise ValueError unless one is set, ``fraction`` in [0, 1] or ``sigma`` above 0."""
    if (fraction is None) == (sigma is None):
        got = "neither" if sigma is None else "both"
        raise ValueError(
            f"a second prompt needs `switch`, the fraction of the steps after which it takes over, "
            f"or `switch_sigma`, the noise level; got {got}"
        )
    if fraction is not None and not 0 <= fraction <= 1:
        raise ValueError(f"`switch` is {fraction}; write a fraction of the steps, from 0 to 1")
    if sigma is not None and not 0 < sigma < math.inf:
        raise ValueError(f"`switch_sigma` is {sigma}; write a noise level above 0")


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """A picture to start the base stage from, instead of pure noise (image-to-image,
    arXiv:2108.01073)."""

    picture: Tensor
    """[N or 1, 3, H, W] in [-1, 1]: one for each image, or one for all."""

    sigma: float
    """First noise level: the more noise, the less of the picture is left."""

    def __post_init__(self) -> None:
        _check_picture(self.picture)

    def at(self, side: int) -> Tensor:
        """The picture at a stage's resolution, [N or 1, 3, side, side]."""
        return _resized(self.picture, side, "bicubic").clamp(-1, 1)


def check_start(sigma: float, sigma_min: float, sigma_max: float) -> None:
    """Raise ValueError for a first noise level that is not in (sigma_min, sigma_max]."""
    if not sigma_min < sigma <= sigma_max:
        raise ValueError(
            f"`sigma` is {sigma}; write a noise level above {sigma_min} and up to {sigma_max}, "
            "the base stage's `sigma_min` and `sigma_max`"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Keep:
    """A picture that is kept outside a region, which is drawn anew (inpainting), in every stage.

    The denoised image is replaced by the picture where it is kept. There the ODE's solution is then
    ``picture + σ ε``, which every solver follows exactly, and which the networks expect to see.
    """

    picture: Tensor
    """[N or 1, 3, H, W] in [-1, 1]: one for each image, or one for all."""

    drawn: Tensor
    """[N or 1, 1, H, W] in [0, 1]: 1 where to draw, 0 where to keep; in between, a mixture."""

    def __post_init__(self) -> None:
        _check_picture(self.picture)
        if self.drawn.ndim != 4 or self.drawn.shape[1:] != (1, *self.picture.shape[2:]):
            raise ValueError(
                f"a mask of shape {list(self.drawn.shape)} does not fit pictures of shape "
                f"{list(self.picture.shape)}; give [N or 1, 1, height, width]"
            )

    def at(self, side: int) -> Keep:
        """The same at a stage's resolution, with a soft seam inside the drawn region."""
        drawn = _resized(self.drawn, side, "area")
        radius = max(1, side // SEAM)
        edges = F.pad(drawn, [radius] * 4, mode="replicate")
        soft = F.avg_pool2d(edges, 2 * radius + 1, stride=1)
        picture = _resized(self.picture, side, "bicubic").clamp(-1, 1)
        return Keep(picture=picture, drawn=drawn * soft)

    def kept(self) -> Tensor:
        """The picture where it is kept, 0 elsewhere: the mean of the initial noise."""
        return self.picture * (1 - self.drawn)

    def within(self, denoise: Denoise) -> Denoise:
        """Replace what is denoised by the picture where it is kept."""
        return lambda x, sigma: torch.lerp(self.picture, denoise(x, sigma), self.drawn)


SEAM = 64
"""The seam of :class:`Keep` is this fraction of the picture's side wide, and at least a pixel."""


def _check_picture(picture: Tensor) -> None:
    if picture.ndim != 4:
        raise ValueError(
            f"a picture of shape {list(picture.shape)} was given; give [N or 1, 3, height, width]"
        )


def _resized(x: Tensor, side: int, mode: Literal["area", "bicubic"]) -> Tensor:
    if x.shape[2:] == (side, side):
        return x
    return F.interpolate(x, size=(side, side), mode=mode, antialias=mode == "bicubic")


@dataclass(frozen=True, kw_only=True, eq=False)
class Control:
    """What :func:`ediffi_core.cascade.sample` may be given beyond the conditioning of N images."""

    negative: Conditioning | None = None
    """Negative prompts, one row per image; a row of absent embeddings has no effect."""

    switch: Switch | None = None
    start: Start | None = None
    keep: Keep | None = None

    def map_rows(
        self, cond: Callable[[Conditioning], Conditioning], picture: Callable[[Tensor], Tensor]
    ) -> Control:
        """Apply functions to every conditioning and to every picture and mask."""
        switch, start, keep = self.switch, self.start, self.keep
        return Control(
            negative=None if self.negative is None else cond(self.negative),
            switch=switch and replace(switch, cond=cond(switch.cond)),
            start=start and replace(start, picture=picture(start.picture)),
            keep=keep and Keep(picture=picture(keep.picture), drawn=picture(keep.drawn)),
        )

    def to(self, device: torch.device | str) -> Control:
        return self.map_rows(lambda c: c.to(device), lambda t: t.to(device))

    def __getitem__(self, rows: slice) -> Control:
        """Some of the rows; what is one for all stays."""
        return self.map_rows(lambda c: c[rows], lambda t: t if len(t) == 1 else t[rows])

    def check(self, rows: int) -> None:
        """Raise ValueError if there are not as many rows, or values that are not finite."""
        named = {
            "a negative prompt": self.negative,
            "a second prompt": self.switch.cond if self.switch else None,
        }
        for name, cond in named.items():
            if cond is None:
                continue
            if len(cond) != rows:
                raise ValueError(f"{name} for {len(cond)} images, but {rows} are sampled")
            if bad := cond.non_finite_rows():
                row, embedding = bad[0]
                raise ValueError(
                    f"{embedding} of {name} has values that are not finite in row {row}; encode it "
                    "again, in float32 if it was in another type"
                )
        pictures = [] if self.start is None else [self.start.picture]
        pictures += [] if self.keep is None else [self.keep.picture, self.keep.drawn]
        for picture in pictures:
            if len(picture) not in (1, rows):
                raise ValueError(f"{len(picture)} pictures for {rows} images; give 1 or {rows}")
