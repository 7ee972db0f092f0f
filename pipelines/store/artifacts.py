"""The artifact store: each node's result is in ``<root>/nodes/<kind>/<name>-<fingerprint>/``.

A node is done once its ``manifest.json`` exists, which is written last. Every file is written
atomically: with a temporary name and a rename on disk, with one PUT to an object store.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipelines.formatting import has_password, without_passwords
from pipelines.store import lock
from pipelines.store.remote import StorageError, attempt, filesystem
from pipelines.store.scratch import folder_time, is_abandoned, temp_suffix

MANIFEST = "manifest.json"

SCRATCH = "ray-train"
"""Folder of temporary files that are useless once their writer is dead; see :func:`temp_suffix`."""

CACHE = ".cache/ediffi/files"
"""Folder in the user's home for files fetched from a bucket. May be deleted at any time."""

IN_USE = f"{CACHE}/in-use"
"""Folder for files fetched from a bucket to be read once; see :meth:`Store.fetched`."""

STAMPS = ("ETag", "etag", "LastModified", "last_modified", "updated", "mtime", "created")
"""Names that file systems give to a file's checksum or time, the best first."""

T = TypeVar("T")


def sha256(data: bytes | bytearray) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def to_json(value: Any) -> bytes:
    """A value as the store keeps it."""
    return json.dumps(value, indent=1, sort_keys=True).encode()


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content, read in pieces."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _rename_unless_exists(scratch: Path, folder: Path) -> None:
    """Rename a folder, unless another process has already put the same one there."""
    try:
        scratch.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _stamp(info: Mapping[str, Any]) -> str:
    """What changes with a file's content: its checksum, or else its time, as fsspec lists it."""
    return str(next((info[key] for key in STAMPS if info.get(key)), None))


def _listed(folder: Path, note: Callable[[BaseException], None]) -> list[Path]:
    """What is in a folder; an error is noted."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        note(error)
        return []


def _remove_tree(folder: Path, note: Callable[[BaseException], None]) -> None:
    """Remove a folder and its content; errors are noted."""
    shutil.rmtree(folder, onerror=lambda _, __, failed: note(failed[1]))


@dataclass(frozen=True)
class Store:
    """A folder or a bucket. Paths are relative to its root and use ``/``."""

    root: str

    @staticmethod
    def open(root: str) -> Store:
        """Open a store that must be writable, creating its folder if needed.

        Raises:
            ValueError: It cannot be written.
        """
        store = Store.at(root)
        probe = f".writable{temp_suffix()}.tmp"
        try:
            store.write(probe, b"")
            store.remove(probe)
        except StorageError as error:  # its message names the place and what to do
            raise ValueError(f"storage {error}") from error
        except OSError as error:
            raise ValueError(
                f"storage {root!r} cannot be written ({error}); "
                "set `storage:` in the spec, or --storage, to a writable place"
            ) from error
        return store

    @staticmethod
    def at(root: str) -> Store:
        """The store at a path or URL. Paths are made absolute, as workers run in other folders.

        Raises:
            ValueError: The URL holds a password, which every record would keep.
        """
        if has_password(root):
            raise ValueError(
                f"storage {without_passwords(root)} is given with a password, which every record "
                "would keep; set credentials in the environment, as AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or in `s3:`"
            )
        return Store(root.rstrip("/") if "://" in root else str(Path(root).absolute()))

    @staticmethod
    def existing(root: str) -> Store:
        """The store at a path or URL, to read from.

        Raises:
            ValueError: There is no such folder.
            StorageError: The bucket cannot be read.
        """
        store = Store.at(root).check_access()
        if store.is_local and not Path(store.root).is_dir():
            raise ValueError(
                f"there is no store at {store.root}; `ediffi run` makes one, and --storage or "
                "EDIFFI_STORE names another"
            )
        return store

    def check_access(self) -> Store:
        """Fail early if a bucket does not exist or denies access; returns the store.

        Raises:
            StorageError: The bucket cannot be read.
        """
        if not self.is_local:
            with contextlib.suppress(FileNotFoundError):
                attempt(lambda: self.fs.cat_file(self.full(".greeting")), self.root, attempts=2)
        return self

    @property
    def fs(self) -> Any:
        """The fsspec file system."""
        return filesystem(self.root)[0]

    @property
    def writer(self) -> str:
        """Id of the one writer that may write here; empty if anybody may."""
        return ""

    @property
    def is_local(self) -> bool:
        """Whether the store is a folder on disk, not a bucket."""
        return "://" not in self.root

    def full(self, path: str) -> str:
        """The full path or URL of a path in the store."""
        return f"{self.root}/{path}" if path else self.root

    def _retry(self, once: Callable[[], T], path: str) -> T:
        """Call a file system operation; on a bucket, retry transient failures."""
        return once() if self.is_local else attempt(once, self.full(path))

    def write(self, path: str, data: bytes | bytearray) -> None:
        """Write a file atomically."""
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
            self._move(scratch, target, path)
        finally:
            scratch.unlink(missing_ok=True)

    def _move(self, scratch: Path, target: Path, path: str) -> None:
        """Put a file that is written in its place: ``path`` in the store."""
        scratch.replace(target)

    def write_json(self, path: str, value: Any) -> None:
        """Write a value as sorted JSON, atomically."""
        self.write(path, to_json(value))

    def read(self, path: str) -> bytes | None:
        """The file's bytes, or None if it does not exist."""
        try:
            if self.is_local:
                return Path(self.full(path)).read_bytes()
            data: bytes = self._retry(lambda: self.fs.cat_file(self.full(path)), path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return data

    def read_json(self, path: str) -> Any:
        """The file's value, or None if it does not exist; ValueError if it is not JSON."""
        return self.parsed(path, self.read(path))

    def parsed(self, path: str, data: bytes | None) -> Any:
        """The value of a file that was read; as of :meth:`read_json`."""
        if data is None:
            return None
        try:
            return json.loads(data)
        except ValueError as error:
            raise ValueError(
                f"{self.full(path)} is damaged ({error}); remove it and run again"
            ) from error

    def files(self, folder: str) -> dict[str, int]:
        """Relative path → bytes of every file below a folder, without temporary files."""
        return {
            name: info["size"]
            for name, info in self._listing(folder).items()
            if not Path(name).name.startswith(".")
        }

    def _listing(self, path: str) -> dict[str, dict[str, Any]]:
        """Relative path → fsspec info of every file below; for a single file, the path is ``.``."""
        full = self.full(path)
        try:
            found = self._retry(lambda: self.fs.find(full, detail=True), path)
        except FileNotFoundError:
            return {}
        base = self.fs._strip_protocol(full)
        return {
            os.path.relpath(name, base): info
            for name, info in sorted(found.items())
            # Without folders: s3fs lists the given one, and Arrow's folder markers, "name/".
            if info["type"] != "directory" and not name.endswith("/")
        }

    def size(self, path: str) -> int | None:
        """Bytes of a file, or None if it does not exist. Correct even while listings lag."""
        try:
            found = self._retry(lambda: self.fs.info(self.full(path)), path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found["size"] if found["type"] == "file" else None

    def remove(self, path: str) -> None:
        """Remove a file, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self._retry(lambda: self.fs.rm_file(self.full(path)), path)

    def remove_folder(self, folder: str) -> None:
        """Remove a folder and its content, if it exists."""
        if self.is_local:
            shutil.rmtree(self.full(folder), ignore_errors=True)
            return
        for name in self._retry(lambda: self.fs.find(self.full(folder)), folder):
            with contextlib.suppress(FileNotFoundError):
                self._retry(partial(self.fs.rm_file, name), folder)

    def local(self, path: str) -> Path:
        """A local path of a file or folder, for libraries that need one; fetches from a bucket.

        Fetched files are cached under :data:`CACHE` by address, size and stamp, so changed content
        is fetched again. A fetch is atomic.

        Raises:
            ValueError: The bucket has no such file or folder.
        """
        if self.is_local:
            return Path(self.full(path))
        found, key = self._found(path)
        return self._fetch_all(path, found, Path.home() / CACHE / key)

    @contextlib.contextmanager
    def fetched(self, path: str) -> Iterator[Path]:
        """A local path of a file while the context is open; for large files that are read once.

        What is fetched from a bucket is shared by all readers on the machine, and removed with the
        last of them.

        Raises:
            ValueError: The bucket has no such file.
        """
        if self.is_local:
            yield Path(self.full(path))
            return
        found, key = self._found(path)
        folder = Path.home() / IN_USE / key
        readers = folder.with_suffix(".lock")
        try:
            with lock.shared(readers):
                yield self._fetch_all(path, found, folder)
        finally:
            lock.remove_unused(readers, lambda: shutil.rmtree(folder, ignore_errors=True))

    def _found(self, path: str) -> tuple[dict[str, dict[str, Any]], str]:
        """Listing of a file or folder in a bucket, and the key of its content in the cache."""
        found = self._complete_listing(path, self._listing(path))
        if not found:
            raise ValueError(f"{self.full(path)} does not exist; run the node that makes it again")
        stamps = [(n, i["size"], _stamp(i)) for n, i in found.items()]
        return found, sha256(json.dumps([self.full(path), stamps]).encode())[:32]

    def _fetch_all(self, path: str, found: dict[str, dict[str, Any]], folder: Path) -> Path:
        """Fetch a file or folder into a folder, unless it is there; → its place."""
        name = "" if set(found) != {"."} else path.rpartition("/")[2]
        if not folder.exists():
            scratch = folder.with_name(f".{folder.name}{temp_suffix()}.tmp")
            try:
                for relative, info in found.items():
                    source = path if relative == "." else f"{path}/{relative}"
                    self._fetch(source, scratch / (name or relative), info["size"])
                _rename_unless_exists(scratch, folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        return folder / name

    def verified(self, path: str) -> Path:
        """As :meth:`local`, for a file or folder in a node's folder, compared with its manifest.

        What no manifest lists is not compared: no finished node wrote it.

        Raises:
            ValueError: A file is missing, or differs from what the node wrote; or the manifest is
                damaged.
        """
        folder, _, name = path.rpartition("/")
        node = f"{folder}/{MANIFEST}".lstrip("/")
        manifest, local = self.read_json(node), self.local(path)
        listed = manifest.get("files", {}) if isinstance(manifest, dict) else {}
        for file in (f for f in listed if f == name or f.startswith(f"{name}/")):
            place = local / file.removeprefix(name).lstrip("/")
            found = file_sha256(place) if place.is_file() else "missing"
            if not isinstance(listed[file], dict) or found != listed[file].get("sha256"):
                raise ValueError(
                    f"{place} is not what its node wrote: its sha256 is {found:.12}…, which is not "
                    f"what {self.full(node)} says; restore them, or remove the folder and run its "
                    "pipeline again"
                )
        return local

    def _complete_listing(
        self, path: str, listed: dict[str, dict[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        """Add files of a finished node, or of a folder in it, that a lagging listing lacks."""
        if set(listed) == {"."} or not path.startswith("nodes/"):
            return listed
        for node in (path, path.rpartition("/")[0]):
            if manifest := self.read_json(f"{node}/{MANIFEST}"):
                within = f"{path}/".removeprefix(f"{node}/")
                names = [f.removeprefix(within) for f in manifest["files"] if f.startswith(within)]
                for name in (n for n in names if n not in listed):
                    with contextlib.suppress(FileNotFoundError):  # reading it will report that
                        full = self.full(f"{path}/{name}")
                        listed[name] = self._retry(partial(self.fs.info, full), path)
                break
        return dict(sorted(listed.items()))

    def _fetch(self, path: str, to: Path, size: int) -> None:
        to.parent.mkdir(parents=True, exist_ok=True)

        def once() -> None:
            self.fs.get_file(self.full(path), str(to))
            if to.stat().st_size != size:
                raise OSError(f"{to.stat().st_size} of {size} bytes arrived")

        self._retry(once, path)

    def put_folder(self, source: Path, folder: str) -> None:
        """Copy a local folder into the store."""
        for file in sorted(p for p in source.rglob("*") if p.is_file()):
            self.write(f"{folder}/{file.relative_to(source)}", file.read_bytes())

    def sweep(self) -> list[str]:
        """Remove temporary files of killed writers. Others may write and remove meanwhile.

        A bucket keeps no partial files. Ray Train's few small files of killed trainings stay there
        under :data:`SCRATCH`; expire them with a lifecycle rule of the bucket.

        Returns:
            Errors of what could not be listed or removed, a line each.
        """
        left: list[str] = []

        def note(error: BaseException) -> None:
            if not isinstance(error, FileNotFoundError):  # it vanished, so it is swept
                left.append(str(error))

        if not self.is_local:
            cache, in_use = Path.home() / CACHE, Path.home() / IN_USE
            now = folder_time(cache)
            for scratch in (*_listed(cache, note), *_listed(in_use, note)):
                if scratch.match(".*.tmp") and is_abandoned(scratch, now):
                    _remove_tree(scratch, note)
            for readers in in_use.glob("*.lock"):
                lock.remove_unused(readers, partial(_remove_tree, readers.with_suffix(""), note))
            return left
        now = folder_time(Path(self.root))
        for folder, _, files in os.walk(self.root, onerror=note):
            for file in (Path(folder, name) for name in files):
                if file.match(".*.tmp") and is_abandoned(file, now):
                    try:
                        file.unlink()
                    except OSError as error:
                        note(error)
        for scratch in _listed(Path(self.full(SCRATCH)), note):
            if is_abandoned(scratch, now):
                _remove_tree(scratch, note)
        with contextlib.suppress(OSError):  # missing, or in use by another pipeline
            Path(self.full(SCRATCH)).rmdir()
        return left

    # -- nodes ---------------------------------------------------------------------------------

    def manifest(self, folder: str) -> dict[str, Any] | None:
        """A finished node's manifest; None if the node is not finished or lacks files.

        Raises:
            ValueError: It is damaged.
        """
        manifest: dict[str, Any] | None = self.read_json(f"{folder}/{MANIFEST}")
        if manifest is None:
            return None
        try:
            listed = {f: v["bytes"] for f, v in manifest["files"].items()}
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.full(folder)}/{MANIFEST} is damaged ({error!r}); remove it and run again"
            ) from error
        found = self.files(folder)
        unlisted = {f: size for f, size in listed.items() if found.get(f) != size}
        complete = all(self.size(f"{folder}/{f}") == size for f, size in unlisted.items())
        return manifest if complete else None

    def commit(
        self,
        folder: str,
        files: list[str],
        manifest: Mapping[str, Any],
        write: Callable[[str, bytes], None] | None = None,
    ) -> dict[str, Any]:
        """Mark a node as done: hash its files, then write its manifest.

        Args:
            folder: The node's folder.
            files: Its files, relative to the folder.
            manifest: Everything else to put into the manifest.
            write: Writes the manifest, given its path and content; :meth:`write` by default.

        Returns:
            The manifest as written.
        """
        entries = {}
        for name in sorted(files):
            data = self.read(f"{folder}/{name}")
            if data is None:
                raise RuntimeError(f"{folder}/{name} vanished before its node was committed")
            entries[name] = {"bytes": len(data), "sha256": sha256(data)}
        full = {**manifest, "files": entries}
        (write or self.write)(f"{folder}/{MANIFEST}", to_json(full))
        return full
