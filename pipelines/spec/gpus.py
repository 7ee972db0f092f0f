"""GPUs that a plan knows, and what a plan assumes where nothing was measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GPU:
    """Peak FLOP/s of dense matrix products, from NVIDIA's data sheets."""

    bfloat16: float
    float32: float
    """Without TF32, as PyTorch multiplies by default."""


GPUS = {
    "A100": GPU(bfloat16=312e12, float32=19.5e12),
    "H100": GPU(bfloat16=989.4e12, float32=66.9e12),  # SXM
    "H200": GPU(bfloat16=989.4e12, float32=66.9e12),
    "L4": GPU(bfloat16=121e12, float32=30.3e12),
    "L40S": GPU(bfloat16=362e12, float32=91.6e12),
    "RTX4090": GPU(bfloat16=165.2e12, float32=82.6e12),
}


def known_gpu(gpu: str) -> str:
    """Return ``gpu``; ValueError with the known names if it is none of :data:`GPUS`."""
    if gpu not in GPUS:
        raise ValueError(f"{gpu!r} is unknown; there are {', '.join(GPUS)}")
    return gpu


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """Values that a plan uses where nothing was measured. Our own estimates unless noted."""

    gpu: str = "H100"
    """Default of the spec's ``embedding.gpu``."""

    utilisation: float = 0.4
    """Default of the spec's ``embedding.utilisation``. PaLM reports 0.46 in training
    (arXiv:2204.02311); short captions reach less."""

    t5_tokens: float = 24.0
    """T5 tokens in a caption, with its end token: about 16 words of 1.4 tokens."""

    clip_tokens: float = 22.0
    """CLIP tokens in a caption, with start and end token: the same words of 1.25 tokens."""

    pair_bytes: float = 100e3
    """Bytes of a source pair: a JPEG of half a megapixel with its caption."""

    png_bytes_a_pixel: float = 1.8
    """Bytes per pixel of a photograph as PNG; uncompressed it has 3."""

    jpeg_bytes_a_pixel: float = 0.6
    """Bytes per pixel of a photograph as JPEG, quality 95, without chroma subsampling."""

    full_aspect: float = 4 / 3
    """Ratio of the longer to the shorter side, of pictures that are stored without cropping."""


ASSUMED = Assumptions()
