"""Where a picture attends to which word of its prompt, by stage and range of noise levels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ediffi_core.attention_maps import AttentionRange, AttentionRecorder
from ediffi_core.control import TokenSpans, occurrences

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, eq=False)
class WordRange:
    """Attention to each word in one range of noise levels."""

    stage: str
    sigma: tuple[float, float]
    """Highest and lowest noise level."""

    experts: list[str]
    maps: Floats
    """Probability that a pixel attends to the word's tokens, mean over heads, layers and steps.
    [words, h, w] float32"""

    shares: Floats
    """Each word's share of the attention to all words; they add up to 1, or are 0 if encoders
    read none of the words. [words] float32"""


@dataclass(frozen=True, eq=False)
class RowAttention:
    """Attention of one picture."""

    words: list[str]
    spans: list[tuple[int, int]]
    """First and last + 1 character of each word in the prompt."""

    ranges: list[WordRange]
    """Stage by stage, from high σ to low."""


class WordAttention:
    """Collects the attention of a drawing: given to ``TextToImage.sample``, and asked afterwards.

    A stage has a range for each expert, or three of equal numbers of steps if it has one expert. It
    has none if it is drawn in tiles, if its network attends to no text, or once a second prompt has
    taken over.
    """

    def __init__(self) -> None:
        self.recorder: AttentionRecorder | None = None
        self.prompts: Sequence[str] = ()
        self.spans: Mapping[str, Sequence[TokenSpans]] = {}

    def start(
        self, prompts: Sequence[str], spans: Mapping[str, Sequence[TokenSpans]]
    ) -> AttentionRecorder:
        """A recorder for a drawing.

        Args:
            spans: sequence embedding → where its tokens are in each prompt.

        Raises:
            ValueError: It has collected a drawing already.
        """
        if self.recorder:
            raise ValueError("this WordAttention has collected a drawing already; make a new one")
        self.recorder, self.prompts, self.spans = AttentionRecorder(), prompts, spans
        return self.recorder

    def of(self, row: int) -> RowAttention:
        """Attention of a picture; ValueError before anything is drawn."""
        if self.recorder is None:
            raise ValueError("nothing is drawn yet; give this to TextToImage.sample first")
        prompt = self.prompts[row]
        words = list(WORD.finditer(prompt))
        tokens = {
            name: [_tokens(word, prompt, rows[row]) for word in words]
            for name, rows in self.spans.items()
        }
        ranges = [
            _word_range(found, row, tokens, len(words))
            for found in self.recorder.ranges.values()
            if found.counts[row] and not tokens.keys().isdisjoint(found.names)
        ]
        return RowAttention([word[0] for word in words], [word.span() for word in words], ranges)


WORD = re.compile(r"\w(?:\S*\w)?")
"""Text between spaces, without punctuation around it."""


def _tokens(word: re.Match[str], prompt: str, spans: TokenSpans) -> list[int]:
    """Indices of an encoder's tokens that overlap a word; none if it reads less of the prompt."""
    before = [match.start() for match in occurrences(word[0], prompt)].index(word.start())
    found = occurrences(spans.clean(word[0]), spans.text)
    if before >= len(found):
        return []
    start, end = found[before].span()
    return [i for i, (a, b) in enumerate(spans.spans) if a < end and start < b]


def _word_range(
    found: AttentionRange, row: int, tokens: Mapping[str, list[list[int]]], words: int
) -> WordRange:
    maps = torch.zeros(words, *found.total.shape[2:])
    for name, of_tokens in found.of(row).items():
        for word, mine in enumerate(tokens.get(name, ())):
            maps[word] += of_tokens[mine].sum(dim=0)
    means = maps.mean(dim=(1, 2))
    shares = means / means.sum().clamp_min(torch.finfo(means.dtype).tiny)
    experts = [found.expert] if found.expert else []
    return WordRange(found.stage, found.sigma, experts, maps.numpy(), shares.numpy())
