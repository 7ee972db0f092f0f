"""Attention of a picture to the words of its prompt, as an event."""

from __future__ import annotations

import numpy as np

from pipelines.models.attention import RowAttention, WordRange
from pipelines.models.painting import encode_png
from pipelines.serving.events import Attention, Words


def attention_event(found: RowAttention, picture: int) -> Attention:
    """The event of a picture.

    Args:
        picture: its number in the request.
    """
    return Attention(
        picture=picture,
        words=found.words,
        spans=found.spans,
        ranges=[_words(one) for one in found.ranges],
    )


def _words(found: WordRange) -> Words:
    largest = float(found.maps.max(initial=0))
    shown = np.round(found.maps * (255 / largest if largest else 0)).astype(np.uint8)
    high, low = found.sigma
    return Words(
        stage=found.stage,
        sigma=(float(high), float(low)),
        experts=found.experts,
        maps=[encode_png(one) for one in shown],
        shares=[float(share) for share in found.shares],
    )
