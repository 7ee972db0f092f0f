"""The store: every node's result under ``<root>/nodes/<kind>/<name>-<fingerprint>/``.

A node is done when its ``manifest.json`` is there, and that is written last. Every file arrives
whole: a temporary name and a rename on disk, one PUT on an object store.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

MANIFEST = "manifest.json"


SCRATCH = "ray-train"
"""Folder of what is of no use once its writer is dead; see :func:`signature`."""

A_DAY_S = 86_400


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def signature() -> str:
    """Ends the name of a temporary thing, and says whose it is: ``.host.process.random``."""
    return f".{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"


def is_abandoned(path: Path) -> bool:
    """Whether a temporary thing's writer is dead, or elsewhere and silent for a day."""
    try:
        age_s = time.time() - path.stat().st_mtime
        host = re.escape(socket.gethostname())
        if mine := re.search(rf"\.{host}\.(\d+)\.[0-9a-f]{{8}}(\.tmp)?$", path.name):
            os.kill(int(mine[1]), 0)
            return False  # at work, however long: Ray Train's scratch lives as long as the training
    except ProcessLookupError:
        return True
    except OSError:  # gone meanwhile, or another user's process: not ours to judge
        return False
    return age_s > A_DAY_S


@dataclass(frozen=True)
class Store:
    """A folder or a bucket. Paths are relative to its root, with ``/``."""

    root: str

    @staticmethod
    def open(root: str) -> Store:
        """Opens (and if need be creates) a store that must be writable; ValueError if it is not."""
        store = Store.at(root)
        probe = f".writable{signature()}.tmp"
        try:
            store.write(probe, b"")
            store.fs.rm_file(store.full(probe))
        except OSError as error:
            raise ValueError(
                f"storage {root!r} cannot be written ({error}); "
                "set `storage:` in the spec, or --storage, to a place that can"
            ) from error
        return store

    @staticmethod
    def at(root: str) -> Store:
        """The store at a path or URL; workers have other folders, so a path is made absolute."""
        return Store(root.rstrip("/") if "://" in root else str(Path(root).absolute()))

    @property
    def fs(self) -> Any:
        return fsspec.core.url_to_fs(self.root)[0]

    @property
    def is_local(self) -> bool:
        return "://" not in self.root

    def full(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def write(self, path: str, data: bytes) -> None:
        """Writes a file at once or not at all."""
        full = self.full(path)
        if not self.is_local:
            self.fs.pipe_file(full, data)
            return
        target = Path(full)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}{signature()}.tmp")
        try:
            with scratch.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)

    def write_json(self, path: str, value: Any) -> None:
        self.write(path, json.dumps(value, indent=1, sort_keys=True).encode())

    def read(self, path: str) -> bytes | None:
        """The file's bytes, or None if there is no such file."""
        try:
            data: bytes = self.fs.cat_file(self.full(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return data

    def read_json(self, path: str) -> Any:
        """The file's value, or None if there is no such file; ValueError if it is no JSON."""
        data = self.read(path)
        if data is None:
            return None
        try:
            return json.loads(data)
        except ValueError as error:
            raise ValueError(f"{self.full(path)} is damaged ({error}); remove it") from error

    def files(self, folder: str) -> dict[str, int]:
        """Relative path → size of every file below a folder; temporary files left out."""
        full = self.full(folder)
        try:
            found = self.fs.find(full, detail=True)
        except FileNotFoundError:
            return {}
        base = self.fs._strip_protocol(full)
        return {
            os.path.relpath(name, base): info["size"]
            for name, info in sorted(found.items())
            if not Path(name).name.startswith(".")
        }

    def local(self, path: str) -> Path:
        """A path on this machine for libraries that need one; fetched first from a bucket."""
        if self.is_local:
            return Path(self.full(path))
        cache = Path.home() / ".cache" / "ediffi" / sha256(self.full(path).encode())[:16]
        self.fs.get(self.full(path), str(cache), recursive=True)
        return cache

    def put_folder(self, source: Path, folder: str) -> None:
        for file in sorted(p for p in source.rglob("*") if p.is_file()):
            self.write(f"{folder}/{file.relative_to(source)}", file.read_bytes())

    def sweep(self) -> None:
        """Removes what killed writers left behind; a bucket keeps nothing half written."""
        if not self.is_local:
            return
        for file in Path(self.root).rglob(".*.tmp"):
            if is_abandoned(file):
                file.unlink(missing_ok=True)
        for folder in Path(self.full(SCRATCH)).glob("*"):
            if is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # not there, or another pipeline is at work
            Path(self.full(SCRATCH)).rmdir()

    # -- nodes ---------------------------------------------------------------------------------

    def manifest(self, folder: str) -> dict[str, Any] | None:
        """A finished node's manifest; None if it is not finished or its files are not all there."""
        manifest: dict[str, Any] | None = self.read_json(f"{folder}/{MANIFEST}")
        if manifest is None:
            return None
        there = self.files(folder)
        whole = all(there.get(f) == v["bytes"] for f, v in manifest["files"].items())
        return manifest if whole else None

    def commit(self, folder: str, files: list[str], manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Declares a node done: hashes its files, then writes its manifest."""
        entries = {}
        for name in sorted(files):
            data = self.read(f"{folder}/{name}")
            if data is None:
                raise RuntimeError(f"{folder}/{name} vanished before its node was committed")
            entries[name] = {"bytes": len(data), "sha256": sha256(data)}
        full = {**manifest, "files": entries}
        self.write_json(f"{folder}/{MANIFEST}", full)
        return full
