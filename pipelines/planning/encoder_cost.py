"""What embedding costs before it is done: FLOPs of the encoders, GPU-hours, bytes of the shards.

A model on the back of an envelope: 2 FLOPs a parameter and token, and attention's products, over
what a GPU does at best times the share of it that is reached. Embeddings, norms and the time to
decode pictures are left out.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ediffi_core.published import located, published_clip
from pipelines.spec.gpus import ASSUMED, GPUS, Assumptions

SECONDS_AN_HOUR = 3600
POOLED_BYTES = 2  # a value; pooled vectors are kept in fp16


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """The size of an encoder's tower."""

    layers: int
    width: int
    attention: int
    """Heads times their width."""

    feed_forward: int
    matrices: int = 2
    """Of the feed-forward part; 3 if it is gated."""

    @property
    def parameters(self) -> int:
        """Of the matrices; the embedding table does not compute."""
        inside = 4 * self.attention + self.matrices * self.feed_forward
        return self.layers * self.width * inside

    def flops(self, tokens: float) -> float:
        """Of one sequence, forward: 2 a parameter and token, 4 for each pair of tokens."""
        pairs = 4 * tokens**2 * self.attention * self.layers
        return 2 * self.parameters * tokens + pairs


@dataclass(frozen=True, kw_only=True)
class Counted:
    """An encoder of which only the width and the number of parameters are known."""

    width: int
    parameters: int
    """Of all but the tables, which do not compute."""

    def flops(self, tokens: float) -> float:
        """Of one sequence, forward, without attention's products: some percent for a caption."""
        return 2 * self.parameters * tokens


@dataclass(frozen=True, kw_only=True)
class Clip:
    """The size of a CLIP."""

    text: Transformer
    vision: Transformer
    image_tokens: int
    """Patches, and one for the whole."""

    dim: int
    """Of the space that both towers project to."""


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
"""Encoders of T5 1.1, and of FLAN-T5, from their ``config.json``."""


LAYERS = ("num_layers", "num_hidden_layers", "n_layers", "n_layer", "encoder_layers")
WIDTH = ("d_model", "hidden_size", "dim", "n_embd", "emb_dim")
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "encoder_attention_heads")
FEED_FORWARD = ("d_ff", "intermediate_size", "hidden_dim", "encoder_ffn_dim", "n_inner")
"""What the families of text encoders call them in their ``config.json``."""

UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error)
"""What reading a stranger's configuration may end in: its size is unknown, and the plan says so."""


def t5_size(source: str, width: int | None = None) -> Transformer | Counted | None:
    """Of a text encoder: a published T5, or one whose configuration or weights are here.

    None if it is neither known nor there; never an error, as an estimate must stop no plan.

    Args:
        width: of its vectors, if that is known already.
    """
    family, _, size = source.rpartition("/")[2].rpartition("-")
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
        return Counted(width=width, parameters=counted) if width and counted else None
    except UNREADABLE:
        return None


def _folder_of(source: str) -> Path | None:
    """Where a text encoder's ``config.json`` is: its folder, or the cache of published models."""
    folder = Path(located(source))
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source, "config.json")  # a ValueError for no such name
    return Path(cached).parent if isinstance(cached, str) else None


def _number(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    found = (config[name] for name in names if type(config.get(name)) is int and config[name] > 0)
    return next(found, None)


def _parameters(folder: Path) -> Iterator[int]:
    """Of each matrix in the folder's safetensors, by their headers alone."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            (size,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(size))
        for name, tensor in header.items():
            is_table = any(part in name for part in ("embed", "shared", "wte", "wpe"))
            if name != "__metadata__" and not is_table and len(tensor["shape"]) > 1:
                yield math.prod(tensor["shape"])


def clip_size(source: str) -> Clip | None:
    """Of a CLIP that OpenCLIP describes, or a folder's; None if its towers are of other kinds."""
    try:
        return _clip_size(source)
    except UNREADABLE:
        return None


def _clip_size(source: str) -> Clip | None:
    file = Path(located(source)) / "open_clip_config.json"
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
    """Of one GPU; ``dtype`` is float32 or bfloat16."""
    peak: float = getattr(GPUS[assumed.gpu], dtype)
    return flops / (peak * assumed.utilisation) / SECONDS_AN_HOUR


def t5_flops(size: Transformer | Counted, pairs: float, tokens: float) -> float:
    return pairs * size.flops(tokens)


def clip_flops(size: Clip, pairs: float, tokens: float) -> float:
    """Of caption and picture."""
    return pairs * (size.text.flops(tokens) + size.vision.flops(size.image_tokens))


def caption_bytes(
    t5_width: int, clip: Clip, tokens: Mapping[str, float], precision: str
) -> dict[str, float]:
    """Embedding → bytes of a pair's: tokens × width × the precision's."""
    from pipelines.store.columns import token_bytes

    return {
        "t5": tokens["t5"] * token_bytes(t5_width, precision),
        "clip_text": tokens["clip_text"] * token_bytes(clip.text.width, precision),
        "pooled": 2.0 * clip.dim * POOLED_BYTES,
    }


def text_bytes(width: int, tokens: float | None, precision: str) -> float:
    """Of a further encoder's embedding: so many tokens, or for None one pooled vector."""
    from pipelines.store.columns import token_bytes

    return width * POOLED_BYTES if tokens is None else tokens * token_bytes(width, precision)


def picture_bytes(
    resolutions: list[int], full: list[int], pictures: str, assumed: Assumptions = ASSUMED
) -> float:
    """Of a pair's pictures, one for every stage."""
    a_pixel = {"raw": 3.0, "png": assumed.png_bytes_a_pixel, "jpeg": assumed.jpeg_bytes_a_pixel}
    pixels = sum(r * r * (assumed.full_aspect if r in full else 1.0) for r in resolutions)
    return pixels * a_pixel[pictures]
