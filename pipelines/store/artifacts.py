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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipelines.store.remote import StorageError, attempt, filesystem

MANIFEST = "manifest.json"

SCRATCH = "ray-train"
"""Folder of what is of no use once its writer is dead; see :func:`signature`."""

CACHE = ".cache/ediffi/files"
"""Below the user's home: what libraries that need a path got of a bucket. May be deleted."""

A_DAY_S = 86_400

T = TypeVar("T")


def sha256(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


def temp_suffix() -> str:
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


def _rename_unless_exists(scratch: Path, folder: Path) -> None:
    """Renames a folder, unless another process was first with the same."""
    try:
        scratch.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


@dataclass(frozen=True)
class Store:
    """A folder or a bucket. Paths are relative to its root, with ``/``."""

    root: str

    @staticmethod
    def open(root: str) -> Store:
        """Opens (and if need be creates) a store that must be writable; ValueError if it is not."""
        store = Store.at(root)
        probe = f".writable{temp_suffix()}.tmp"
        try:
            store.write(probe, b"")
            store.remove(probe)
        except StorageError as error:  # which names the place, and says what to do
            raise ValueError(f"storage {error}") from error
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

    def check_access(self) -> Store:
        """Whether a bucket is there and lets us in, sooner told than work in it would."""
        if not self.is_local:
            with contextlib.suppress(FileNotFoundError):
                attempt(lambda: self.fs.cat_file(self.full(".greeting")), self.root, attempts=2)
        return self

    @property
    def fs(self) -> Any:
        return filesystem(self.root)[0]

    @property
    def is_local(self) -> bool:
        return "://" not in self.root

    def full(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def _retry(self, once: Callable[[], T], path: str) -> T:
        """Does something with the file system; a bucket's is asked again if it must be."""
        return once() if self.is_local else attempt(once, self.full(path))

    def write(self, path: str, data: bytes | bytearray) -> None:
        """Writes a file at once or not at all."""
        full = self.full(path)
        if not self.is_local:
            self._retry(lambda: self.fs.pipe_file(full, data), path)
            return
        target = Path(full)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}{temp_suffix()}.tmp")
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
            data: bytes = self._retry(lambda: self.fs.cat_file(self.full(path)), path)
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
        return {
            name: info["size"]
            for name, info in self._listing(folder).items()
            if not Path(name).name.startswith(".")
        }

    def _listing(self, path: str) -> dict[str, dict[str, Any]]:
        """Relative path → what the file system says of every file below; a file's own is ``.``."""
        full = self.full(path)
        try:
            found = self._retry(lambda: self.fs.find(full, detail=True), path)
        except FileNotFoundError:
            return {}
        base = self.fs._strip_protocol(full)
        return {
            os.path.relpath(name, base): info
            for name, info in sorted(found.items())
            # Not a folder: s3fs lists the one asked for, and what Arrow marks them with, "name/".
            if info["type"] != "directory" and not name.endswith("/")
        }

    def size(self, path: str) -> int | None:
        """Bytes of a file; None if there is none. Says so also where a listing comes late."""
        try:
            found = self._retry(lambda: self.fs.info(self.full(path)), path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found["size"] if found["type"] == "file" else None

    def remove(self, path: str) -> None:
        """Removes a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._retry(lambda: self.fs.rm_file(self.full(path)), path)

    def remove_folder(self, folder: str) -> None:
        """Removes a folder and what is in it, if it is there."""
        if self.is_local:
            shutil.rmtree(self.full(folder), ignore_errors=True)
            return
        for name in self._retry(lambda: self.fs.find(self.full(folder)), folder):
            with contextlib.suppress(FileNotFoundError):
                self._retry(partial(self.fs.rm_file, name), folder)

    def local(self, path: str) -> Path:
        """A path on this machine for libraries that need one; fetched first from a bucket.

        What was fetched is kept under :data:`CACHE`, by its address and the checksums of its files:
        other content is fetched anew. It comes whole or not at all.

        Raises:
            ValueError: The bucket has no such file or folder.
        """
        if self.is_local:
            return Path(self.full(path))
        there = self._complete_listing(path, self._listing(path))
        if not there:
            raise ValueError(f"{self.full(path)} is not there; run the node that makes it again")
        stamps = [(n, i["size"], str(i.get("ETag") or i.get("etag"))) for n, i in there.items()]
        key = sha256(json.dumps([self.full(path), stamps]).encode())[:32]
        folder = Path.home() / CACHE / key
        name = "" if set(there) != {"."} else path.rpartition("/")[2]
        if not folder.exists():
            scratch = folder.with_name(f".{key}{temp_suffix()}.tmp")
            try:
                for relative, info in there.items():
                    source = path if relative == "." else f"{path}/{relative}"
                    self._fetch(source, scratch / (name or relative), info["size"])
                _rename_unless_exists(scratch, folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        return folder / name

    def _complete_listing(
        self, path: str, listed: dict[str, dict[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        """A listing, with what it is late to show of a finished node or a folder of its files."""
        if set(listed) == {"."} or not path.startswith("nodes/"):
            return listed
        for node in (path, path.rpartition("/")[0]):
            if manifest := self.read_json(f"{node}/{MANIFEST}"):
                within = f"{path}/".removeprefix(f"{node}/")
                names = [f.removeprefix(within) for f in manifest["files"] if f.startswith(within)]
                for name in (n for n in names if n not in listed):
                    with contextlib.suppress(FileNotFoundError):  # whoever reads it will say so
                        full = self.full(f"{path}/{name}")
                        listed[name] = self._retry(partial(self.fs.info, full), path)
                break
        return dict(sorted(listed.items()))

    def evict(self, fetched: Path) -> None:
        """Removes what :meth:`local` fetched of a file, for large ones that are read once."""
        if not self.is_local:
            shutil.rmtree(fetched.parent, ignore_errors=True)

    def _fetch(self, path: str, to: Path, size: int) -> None:
        to.parent.mkdir(parents=True, exist_ok=True)

        def once() -> None:
            self.fs.get_file(self.full(path), str(to))
            if to.stat().st_size != size:
                raise OSError(f"{to.stat().st_size} of {size} bytes came")

        self._retry(once, path)

    def put_folder(self, source: Path, folder: str) -> None:
        for file in sorted(p for p in source.rglob("*") if p.is_file()):
            self.write(f"{folder}/{file.relative_to(source)}", file.read_bytes())

    def sweep(self) -> None:
        """Removes what killed writers left behind.

        A bucket keeps nothing half written; of killed trainings Ray Train's few small files stay
        there, under :data:`SCRATCH`, for a rule of the bucket's to expire.
        """
        if not self.is_local:
            for scratch in (Path.home() / CACHE).glob(".*.tmp"):
                if is_abandoned(scratch):
                    shutil.rmtree(scratch, ignore_errors=True)
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
        unseen = {f: v["bytes"] for f, v in manifest["files"].items() if there.get(f) != v["bytes"]}
        whole = all(self.size(f"{folder}/{f}") == size for f, size in unseen.items())
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
