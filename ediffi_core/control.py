"""Control of sampling: paint-with-words, style references, and a change of prompt midway."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ediffi_core.conditioning import Conditioning, Paint
from ediffi_core.sampling import Denoise


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
    shares = torch.ones(len(references)) if weights is None else torch.tensor(weights)
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


def sigma_after(sigmas: Tensor, fraction: float) -> float:
    """The noise level for :func:`switched` that is reached after a fraction of the steps."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
    step = round(fraction * (len(sigmas) - 1))
    return float(sigmas[step])
