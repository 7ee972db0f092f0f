"""Rows and headers of shards small enough to check every value."""

import numpy as np
import torch

from ediffi_core.conditioning import EmbeddingSpec
from pipelines.store.shards import Header, Packing

SPECS = (
    EmbeddingSpec(name="t5", dim=8, kind="sequence"),
    EmbeddingSpec(name="clip_image", dim=6, kind="pooled", attended=True),
)
ENCODERS = {"t5": {"name": "t5-tiny", "sha256": "ab" * 32, "dtype": "float32"}}


def made_rows(count, *, name="a", sides=(4, 8), small=(), full=(), seed=0):
    """Rows whose first pixel, and first value of the first token, equal the row number.

    Args:
        small: Numbers of rows without a picture for the largest stage.
    """
    rng = np.random.default_rng(seed)

    def picture(i, side):
        if i in small and side == max(sides):
            return None
        long = side + int(rng.integers(0, side)) if side in full else side
        pixels = rng.integers(0, 256, (side, long, 3) if i % 2 else (long, side, 3), np.uint8)
        pixels[0, 0] = i
        return pixels

    tokens = [torch.from_numpy(rng.normal(size=(rng.integers(1, 6), 8))) for _ in range(count)]
    for i, t in enumerate(tokens):
        t[0, 0] = i
    return {
        "key": [f"{name}-{i}" for i in range(count)],
        "caption": [f"caption {name} {i}" for i in range(count)],
        "score_aesthetic": [float(i) for i in range(count)],
        **{f"pixels_{s}": [picture(i, s) for i in range(count)] for s in sides},
        "t5": tokens,
        "clip_image": [torch.from_numpy(rng.normal(size=6)) for _ in range(count)],
    }


def header(**packing):
    packing = {"row_group_rows": 4, **packing}
    return Header(
        resolutions=(4, 8), embeddings=SPECS, encoders=ENCODERS, packing=Packing(**packing)
    )
