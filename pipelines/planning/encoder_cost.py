"""Estimated cost of embedding: FLOPs of the encoders, GPU-hours, bytes of the shards.

A rough model: 2 FLOPs per parameter and token plus the products of attention, divided by a GPU's
peak × its utilisation. Embedding tables, norms and the time to decode images are left out.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ediffi_core.published import published_clip, resolve_source, split_revision
from pipelines.spec.gpus import ASSUMED, GPUS, Assumptions

SECONDS_PER_HOUR = 3600
POOLED_BYTES = 2  # per value: pooled vectors are stored in fp16


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """Size of a transformer encoder (or one tower of CLIP)."""

    layers: int
    width: int
    """Width of the token vectors."""

    attention: int
    """Heads × head width."""

    feed_forward: int
    """Inner width of the feed-forward part."""

    matrices: int = 2
    """Matrices of the feed-forward part; 3 if it is gated."""

    @property
    def parameters(self) -> int:
        """Parameters of the matrices; the embedding table costs no FLOPs."""
        inside = 4 * self.attention + self.matrices * self.feed_forward
        return self.layers * self.width * inside

    def flops(self, tokens: float) -> float:
        """FLOPs of a forward pass of one sequence: 2 per parameter and token, and attention's 4 per
        channel and pair of tokens."""
        pairs = 4 * tokens**2 * self.attention * self.layers
        return 2 * self.parameters * tokens + pairs


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """An encoder of which only the width and the number of parameters are known."""

    width: int
    """Width of the token vectors."""

    parameters: int
    """Parameters without the embedding tables, which cost no FLOPs."""

    def flops(self, tokens: float) -> float:
        """FLOPs of a forward pass of one sequence, without attention's products: a few percent."""
        return 2 * self.parameters * tokens


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Size of a CLIP model."""

    text: Transformer
    vision: Transformer
    image_tokens: int
    """Patches plus the class token."""

    dim: int
    """Width of the space that both towers project to."""


def _t5(layers: int, width: int, heads: int, feed_forward: int) -> Transformer:
    return Transformer(
        layers=layers, width=width, attention=heads * 64, feed_forward=feed_forward, matrices=3
    )


T5_SIZES = {
    "small": _t5(8, 512, 6, 1024),
    "base": _t5(12, 768, 12, 2048),
    "large": _t5(24, 1024, 16, 2816),
    "xl": _t5(24, 2048, 32, 5120),
    "xxl": _t5(24, 4096, 64, 10240),  # 4.76 B parameters with the table of 32,128 tokens
}
"""Encoders of T5 1.1 and FLAN-T5, from their ``config.json``."""


LAYERS = ("num_layers", "num_hidden_layers", "n_layers", "n_layer", "encoder_layers")
WIDTH = ("d_model", "hidden_size", "dim", "n_embd", "emb_dim")
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "encoder_attention_heads")
FEED_FORWARD = ("d_ff", "intermediate_size", "hidden_dim", "encoder_ffn_dim", "n_inner")
"""Names of the same setting in the ``config.json`` of different model families."""

UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error)
"""Errors that reading an unknown configuration may raise; the size is then reported as unknown."""


def t5_size(source: str, width: int | None = None) -> Transformer | ParameterCount | None:
    """Size of a text encoder: a published T5, or one whose configuration or weights are local.

    None if neither is the case; never an error, because an estimate must not stop a plan.

    Args:
        source: name of a model, or a folder.
        width: width of its vectors, if known.
    """
    family, _, size = split_revision(source)[0].rpartition("/")[2].rpartition("-")
    try:
        if family in ("t5-v1_1", "flan-t5") and not Path(source).is_dir():
            return T5_SIZES.get(size)
        if (folder := _folder_of(source)) is None:
            return None
        c = json.loads((folder / "config.json").read_text())
        c |= c.get("text_config") or {}
        layers, heads, inside = (_number(c, names) for names in (LAYERS, HEADS, FEED_FORWARD))
        width = _number(c, WIDTH) or width
        if width and layers and heads:
            gated = str(c.get("feed_forward_proj", "")).startswith("gated")
            return Transformer(
                layers=layers,
                width=width,
                attention=heads * (_number(c, ("d_kv", "head_dim")) or width // heads),
                feed_forward=inside or 4 * width,
                matrices=3 if gated else 2,
            )
        counted = sum(_parameters(folder))
        return ParameterCount(width=width, parameters=counted) if width and counted else None
    except UNREADABLE:
        return None


def _folder_of(source: str) -> Path | None:
    """Folder of a text encoder's ``config.json``: its own, or that in Hugging Face's cache."""
    folder = Path(resolve_source(source))
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache

    name, revision = split_revision(source)
    # ValueError if it is no valid name
    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(cached).parent if isinstance(cached, str) else None


def _number(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """Value of the first of several settings that is a positive integer."""
    found = (config[name] for name in names if type(config.get(name)) is int and config[name] > 0)
    return next(found, None)


def _parameters(folder: Path) -> Iterator[int]:
    """Parameters of each matrix in the folder's safetensors files, from their headers alone."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            (size,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(size))
        for name, tensor in header.items():
            is_table = any(part in name for part in ("embed", "shared", "wte", "wpe"))
            if name != "__metadata__" and not is_table and len(tensor["shape"]) > 1:
                yield math.prod(tensor["shape"])


def clip_size(source: str) -> Clip | None:
    """Size of a CLIP, by OpenCLIP's name or from a folder; None if a tower is no transformer."""
    try:
        return _clip_size(source)
    except UNREADABLE:
        return None


def _clip_size(source: str) -> Clip | None:
    file = Path(resolve_source(source)) / "open_clip_config.json"
    if file.is_file():
        config = json.loads(file.read_text())["model_cfg"]
    elif (config := published_clip(source)) is None:
        return None
    vision, text = config["vision_cfg"], config["text_cfg"]
    if not isinstance(vision.get("layers"), int) or "width" not in text:
        return None
    side = vision["image_size"]
    patches = (side // vision["patch_size"]) ** 2 if isinstance(side, int) else None
    if patches is None:
        return None
    return Clip(
        text=_tower(text), vision=_tower(vision), image_tokens=patches + 1, dim=config["embed_dim"]
    )


def _tower(config: Mapping[str, Any]) -> Transformer:
    width = config["width"]
    return Transformer(
        layers=config["layers"],
        width=width,
        attention=width,
        feed_forward=int(width * config.get("mlp_ratio", 4)),
    )


def gpu_hours(flops: float, dtype: str, assumed: Assumptions = ASSUMED) -> float:
    """Hours that one GPU takes.

    Args:
        dtype: ``float32`` or ``bfloat16``.
    """
    peak: float = getattr(GPUS[assumed.gpu], dtype)
    return flops / (peak * assumed.utilisation) / SECONDS_PER_HOUR


def t5_flops(size: Transformer | ParameterCount, pairs: float, tokens: float) -> float:
    """FLOPs to encode captions of ``tokens`` tokens on average."""
    return pairs * size.flops(tokens)


def clip_flops(size: Clip, pairs: float, tokens: float) -> float:
    """FLOPs to encode captions of ``tokens`` tokens on average, and as many images."""
    return pairs * (size.text.flops(tokens) + size.vision.flops(size.image_tokens))


def caption_bytes(
    t5_width: int, clip: Clip, tokens: Mapping[str, float], precision: str
) -> dict[str, float]:
    """Embedding → bytes per pair: tokens × width × bytes per value.

    Args:
        tokens: mean tokens per caption, by embedding.
        precision: how token vectors are stored, such as ``fp16`` or ``int8``.
    """
    from pipelines.store.columns import token_bytes

    return {
        "t5": tokens["t5"] * token_bytes(t5_width, precision),
        "clip_text": tokens["clip_text"] * token_bytes(clip.text.width, precision),
        "pooled": 2.0 * clip.dim * POOLED_BYTES,
    }


def text_bytes(width: int, tokens: float | None, precision: str) -> float:
    """Bytes per pair of a further encoder's embedding.

    Args:
        tokens: mean tokens per caption; None for one pooled vector.
    """
    from pipelines.store.columns import token_bytes

    return width * POOLED_BYTES if tokens is None else tokens * token_bytes(width, precision)


def picture_bytes(
    resolutions: list[int], full: list[int], pictures: str, assumed: Assumptions = ASSUMED
) -> float:
    """Bytes of a pair's images, one per resolution.

    Args:
        resolutions: sides in pixels.
        full: the resolutions stored uncropped.
        pictures: file format: ``raw``, ``png`` or ``jpeg``.
    """
    bytes_per_pixel = {
        "raw": 3.0,
        "png": assumed.png_bytes_a_pixel,
        "jpeg": assumed.jpeg_bytes_a_pixel,
    }
    pixels = sum(r * r * (assumed.full_aspect if r in full else 1.0) for r in resolutions)
    return pixels * bytes_per_pixel[pictures]
