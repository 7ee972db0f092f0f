"""GPUs that a plan can count in, and what a plan assumes where nothing was measured."""

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
    """ValueError with those that are known, for another."""
    if gpu not in GPUS:
        raise ValueError(f"{gpu!r} is unknown; there are {', '.join(GPUS)}")
    return gpu


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What is taken for granted where nothing was measured. All are ours unless said otherwise."""

    gpu: str = "H100"
    """The spec's ``embedding.gpu``."""

    utilisation: float = 0.4
    """Share of the peak that is reached; the spec's ``embedding.utilisation``. PaLM reports 0.46
    in training (arXiv:2204.02311); short captions reach less."""

    t5_tokens: float = 24.0
    """Of a caption, its end included: some 16 words, at 1.4 tokens a word."""

    clip_tokens: float = 22.0
    """The same words at 1.25 tokens, its start and end included."""

    pair_bytes: float = 100e3
    """Of a source pair: a JPEG of half a megapixel with its caption."""

    png_bytes_a_pixel: float = 1.8
    """Of 3: what PNG leaves of a photograph."""

    jpeg_bytes_a_pixel: float = 0.6
    """Quality 95 with its chroma whole."""

    full_aspect: float = 4 / 3
    """Long side over short one, of pictures that are kept whole."""


ASSUMED = Assumptions()
