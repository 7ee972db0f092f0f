"""What is known of published encoders without loading them. Does not import torch."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

PACKAGE = "package:"
"""Prefix of the name of an encoder that lies in an installed Python package."""


def resolve_source(source: str) -> str:
    """Resolve ``package:NAME/FOLDER`` to its folder; return any other name or folder unchanged.

    Raises:
        ValueError: No such package is installed, or it has no such folder.
    """
    if not source.startswith(PACKAGE):
        return source
    name, _, inside = source.removeprefix(PACKAGE).partition("/")
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    roots = (found.submodule_search_locations or []) if found else []
    folders = [Path(root) / inside for root in roots]
    folder = next((f for f in folders if f.is_dir()), None)
    if folder is None:
        lacks = f"has no folder {inside!r}" if roots else "is not installed here"
        raise ValueError(f"{source!r} cannot be read: the package {name!r} {lacks}")
    return str(folder)


def split_revision(source: str) -> tuple[str, str | None]:
    """Split ``NAME@REVISION``, a model on Hugging Face and its commit, branch or tag.

    A folder, a package and a name without ``@`` have no revision.
    """
    if "@" not in source or source.startswith(PACKAGE) or is_path(source) or Path(source).is_dir():
        return source, None
    name, _, revision = source.rpartition("@")
    return name, revision


def is_path(source: str) -> bool:
    """Whether an encoder is written as a path, which no published name looks like."""
    return source.startswith(("/", "./", "../", "~"))


QUICK_GELU_TAGS = frozenset(
    ("openai", "yfcc15m", "cc12m", "metaclip_400m", "metaclip_fullcc", "dfn2b", "dfn5b")
)
"""Tags whose weights need QuickGELU in every model that has them."""

QUICK_GELU_PAIRS = frozenset(
    (
        ("ViT-B-32", "laion400m_e31"),
        ("ViT-B-32", "laion400m_e32"),
        ("ViT-H-14-worldwide", "metaclip2_worldwide"),
    )
)
"""Models and tags whose weights need QuickGELU, though the tag's other models do not."""


def tag_changes_activation(model: str, pretrained: str | None) -> bool:
    """Whether a pretrained tag needs QuickGELU where the model's configuration has none.

    The same answer as OpenCLIP's tables give :class:`ediffi_core.encoders.CLIP`, but without
    importing OpenCLIP, which takes 5 s.
    """
    config = published_clip(model)
    if config is None or config.get("quick_gelu") or Path(model).is_dir():
        return False
    name, tag = model.replace("/", "-"), (pretrained or "").lower().replace("-", "_")
    return tag in QUICK_GELU_TAGS or (name, tag) in QUICK_GELU_PAIRS


def published_clip(model: str) -> dict[str, Any] | None:
    """OpenCLIP's configuration of a model, read without importing OpenCLIP; None if unknown."""
    found = importlib.util.find_spec("open_clip")
    roots = (found.submodule_search_locations or []) if found else []
    files = (Path(p, "model_configs", f"{model.replace('/', '-')}.json") for p in roots)
    file = next((f for f in files if f.is_file()), None)
    return None if file is None else dict(json.loads(file.read_text()))
