"""Small copies of the pictures of a tree, for a page that carries them in itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

from pipelines.reports.tree import rows
from pipelines.store.artifacts import Store

SIDES = {"pictures": 640, "sheets": 300}
"""Widths in pixels: of what an ensemble drew, and of what one expert makes of its scenes."""

LIMIT_BYTES = 100_000
"""Of all together, as they stand in the page."""


def wanted(tree: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Path in the store and width, what matters most first."""
    stages = tree["stages"].values()
    drawn = [s["pictures"]["ensemble"] for s in stages if "ensemble" in s.get("pictures", {})]
    sheets = [e["picture"] for s in stages for _, _, _, e in rows(s["experts"]) if e.get("picture")]
    return [(p, SIDES["pictures"]) for p in drawn] + [(p, SIDES["sheets"]) for p in sheets]


def thumbnails(store: Store, tree: Mapping[str, Any]) -> dict[str, str]:
    """Path in the store → a ``data:`` address; those that are there, as many as there is room."""
    found: dict[str, str] = {}
    room = LIMIT_BYTES
    for path, width in wanted(tree):
        if not (png := store.read(path)):
            continue
        address = "data:image/jpeg;base64," + base64.b64encode(small(png, width)).decode()
        if len(address) <= room:
            found[path] = address
            room -= len(address)
    return found


def small(picture: bytes, width: int) -> bytes:
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.thumbnail((width, image.height), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=70, optimize=True)
    return out.getvalue()
