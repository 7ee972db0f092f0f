"""Checks of this machine: Python, torch and its devices, disks and memory."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from pipelines.executor.doctor.check import Check, Checks, Level, Subject
from pipelines.formatting import byte_size
from pipelines.runs.meters import gpu_count

PYTHON = (3, 11)
LOW_DISK, VERY_LOW_DISK = 10e9, 1e9
LOW_MEMORY = 2e9
SHARED_MEMORY = 600e6
"""Of /dev/shm, where Ray keeps its objects; in bytes, as those above."""


def python(_: Subject) -> Checks:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < PYTHON:
        needed = ".".join(map(str, PYTHON))
        yield Check("Python", "fault", found, f"install Python {needed} or later")
    else:
        yield Check("Python", "ok", found)


def device(subject: Subject) -> Checks:
    import torch

    name, threads = f"torch {torch.__version__}", torch.get_num_threads()
    wanted = subject.spec.gpus if subject.spec else 0
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        shown = f"{len(gpus)} × {gpus[0].name} with {byte_size(gpus[0].total_memory)}"
        has: Level = "ok" if len(gpus) >= wanted or os.environ.get("RAY_ADDRESS") else "fault"
        remedy = "lower `gpus:`, or run on a cluster: set RAY_ADDRESS" if has != "ok" else ""
        more = f"; the spec asks for {wanted:g}" if remedy else ""
        yield Check("device", has, f"{name}, {shown}, {threads} CPU threads{more}", remedy)
        return
    if gpu_count():
        yield Check(
            "device",
            "fault",
            f"{name} does not use this machine's GPUs",
            "install a build of torch for CUDA that the driver supports; `nvidia-smi` shows which",
        )
    elif wanted and not os.environ.get("RAY_ADDRESS"):
        yield Check(
            "device",
            "fault",
            f"{name}, no GPU; the spec asks for {wanted:g}",
            "run on a machine or cluster with GPUs (`ediffi submit`, or RAY_ADDRESS), or set "
            "`gpus: 0`",
        )
    else:
        kind = "MPS" if torch.backends.mps.is_available() else "CPU"
        yield Check("device", "ok", f"{name}, {kind}, {threads} CPU threads")


def disk(subject: Subject) -> Checks:
    places = {"temporary files": Path(tempfile.gettempdir()), "downloads": Path.home()}
    if subject.store.is_local:
        places = {"store": Path(subject.root), **places}
    seen: set[int] = set()
    for what, place in places.items():
        there = existing(place)
        if (number := there.stat().st_dev) in seen:
            continue
        seen.add(number)
        free = shutil.disk_usage(there).free
        level: Level = "ok" if free >= LOW_DISK else "warning"
        level = level if free >= VERY_LOW_DISK else "fault"
        remedy = "free some space, or use another disk" if level != "ok" else ""
        yield Check("disk", level, f"{byte_size(free)} free in {there} ({what})", remedy)


def memory(_: Subject) -> Checks:
    free = _available_memory()
    if free is None:
        yield Check("memory", "ok", "not known on this system")
    elif free < LOW_MEMORY:
        remedy = "stop other programs, or use a machine with more memory"
        yield Check("memory", "warning", f"{byte_size(free)} available", remedy)
    else:
        yield Check("memory", "ok", f"{byte_size(free)} available")
    shared = Path("/dev/shm")
    if shared.is_dir() and (size := shutil.disk_usage(shared).free) < SHARED_MEMORY:
        yield Check(
            "memory",
            "warning",
            f"{byte_size(size)} free in /dev/shm, so Ray uses slow files instead",
            "in a container set `--shm-size=2g`",
        )


def _available_memory() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists())
