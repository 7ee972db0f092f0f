"""Where a served ensemble's weights are kept, by their size and the memory that is free."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ediffi_core.loading import Residency
from pipelines.formatting import byte_size
from pipelines.store.artifacts import Store

SHARE = 0.7
"""Share of the free memory that weights may fill; the rest is for encoders and activations."""

MEMORY = Path("/proc/meminfo")

CGROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
"""A container's files, of version 2 and of version 1: folder, limit, usage, and the entry of
``memory.stat`` for cached files, which are dropped when memory is needed."""


def choose(manifest: Mapping[str, Any], *, on_gpu: bool) -> tuple[Residency, str]:
    """Where to keep an ensemble's weights, and the reason in a sentence.

    Args:
        manifest: of the ensemble, with the store that it is in.
        on_gpu: whether it draws on a GPU, and not in host memory.
    """
    store = Store.at(manifest["store"])
    paths = {slot["path"] for slot in manifest["weights"].values()}
    total = sum(store.size(path) or 0 for path in paths)
    host = available_memory()
    places: list[tuple[Residency, int, str]] = [("all", host, "in memory")]
    if on_gpu:
        free = torch.cuda.mem_get_info()[0]
        places = [("all", free, "on the GPU"), ("current", host, "in host memory")]
    for residency, free, place in places:
        if total <= SHARE * free:
            why = f"{byte_size(total)} of weights fit {place}, where {byte_size(free)} are free"
            return residency, why
    return "disk", f"{byte_size(total)} of weights do not fit into {byte_size(host)} of free memory"


def available_memory() -> int:
    """Bytes of host memory that this process may still take, within its container's limit."""
    if not MEMORY.is_file():  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = _entries(MEMORY.read_text().replace(":", ""))["MemAvailable"] * 1024
    for folder, limit, usage, cached in CGROUPS:
        place = Path(folder)
        if not (place / limit).is_file() or (text := (place / limit).read_text().strip()) == "max":
            continue
        dropped = _entries((place / "memory.stat").read_text()).get(cached, 0)
        free = min(free, int(text) - int((place / usage).read_text()) + dropped)
    return free


def _entries(text: str) -> dict[str, int]:
    return {words[0]: int(words[1]) for words in map(str.split, text.splitlines()) if words}
