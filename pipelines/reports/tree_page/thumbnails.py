"""Thumbnails of a tree's images, to embed in the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

from pipelines.reports.tree import tree_rows
from pipelines.rgb import FORMATS
from pipelines.store.artifacts import Store

WIDTHS = {"pictures": 640, "sheets": 300}
"""Width in pixels of an ensemble's images, and of one expert's samples."""

LIMIT_BYTES = 100_000
"""Size of all thumbnails together, as encoded in the page."""


def candidates(tree: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(path in the store, width) of all images of a tree, the most important first."""
    stages = tree["stages"].values()
    drawn = [s["pictures"]["ensemble"] for s in stages if "ensemble" in s.get("pictures", {})]
    experts = [e for s in stages for _, _, _, e in tree_rows(s["experts"])]
    sheets = [e["picture"] for e in experts if e.get("picture")]
    return [(p, WIDTHS["pictures"]) for p in drawn] + [(p, WIDTHS["sheets"]) for p in sheets]


def thumbnails(store: Store, tree: Mapping[str, Any]) -> dict[str, str]:
    """Path in the store → thumbnail as a ``data:`` URL.

    Images that the store lacks, or that would exceed :data:`LIMIT_BYTES`, are left out.

    Raises:
        ValueError: One is no image of a format that data may have.
    """
    found: dict[str, str] = {}
    bytes_left = LIMIT_BYTES
    for path, width in candidates(tree):
        if not (png := store.read(path)):
            continue
        try:
            jpeg = jpeg_thumbnail(png, width)
        except (ValueError, OSError, SyntaxError) as error:
            raise ValueError(f"{store.full(path)} is not a readable image ({error})") from error
        url = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
        if len(url) <= bytes_left:
            found[path] = url
            bytes_left -= len(url)
    return found


def jpeg_thumbnail(picture: bytes, width: int) -> bytes:
    """An image scaled down to a width in pixels, as JPEG."""
    from PIL import Image

    image = Image.open(io.BytesIO(picture), formats=FORMATS).convert("RGB")
    image.thumbnail((width, image.height), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=70, optimize=True)
    return out.getvalue()
