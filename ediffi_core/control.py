"""What people steer pictures with: painted words, a style reference, a change of prompt."""

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
    """A prompt as an encoder's tokenizer read it."""

    text: str
    """The prompt after the tokenizer's own cleaning; spans count its characters."""

    spans: Sequence[tuple[int, int]]
    """For every token the encoder returns, where it stands; empty for special tokens."""

    clean: Callable[[str], str] = str
    """The tokenizer's own cleaning, which a phrase goes through as its prompt has."""


@dataclass(frozen=True, eq=False)
class Phrase:
    """Words of the prompt, and where they shall appear."""

    text: str
    mask: Tensor
    """[h, w], 1 where the phrase shall be and 0 elsewhere; all masks of a call of one size."""

    strength: float = 0.4
    """w' of the paper; users of paint-with-words report 0.1 to 0.4 (paper.md section 8)."""

    occurrence: int | None = None
    """Which of several occurrences in the prompt, from 0; by default all of them."""


def paint_with_words(
    phrases: Sequence[Sequence[Phrase]],
    prompts: Mapping[str, Sequence[TokenSpans]],
    *,
    weight: Literal["max", "std"] = "max",
) -> Paint:
    """The maps of every token of every sequence; where phrases overlap, their strengths add.

    Args:
        phrases: for each picture, what is painted in it; nothing, for some.
        prompts: sequence (``t5``, ``clip_text``) → each picture's prompt and its tokens.

    Raises:
        ValueError: A phrase is not in its prompt, lies beyond what an encoder reads, has an empty
            mask, or a mask of another size than the others.
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
    """Where a phrase stands in a text: as whole words, in any letter case, with any spaces between.

    Raises:
        ValueError: The phrase has no words.
    """
    words = phrase.split()
    if not words:
        raise ValueError("a painted phrase is empty; write words of the prompt")
    pattern = r"\s+".join(re.escape(w) for w in words)
    return list(re.finditer(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE))


def tokens_of(phrase: Phrase, prompt: TokenSpans, encoder: str) -> list[int]:
    """The tokens that hold any of a phrase's characters, in the occurrences that are meant."""
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
    """Every picture in the style of the references: CLIP image embeddings [K, dim], mixed.

    The mixture is brought back to unit length, as CLIP's own embeddings have.
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
    """``before`` above the noise level and ``after`` from it down: a prompt changed midway."""
    return lambda x, s: before(x, s) if float(s) > sigma else after(x, s)


def sigma_after(sigmas: Tensor, fraction: float) -> float:
    """The noise level that :func:`switched` needs to change after this fraction of the steps."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"a fraction of the steps lies in [0, 1], got {fraction}")
    step = round(fraction * (len(sigmas) - 1))
    return float(sigmas[step])
