"""Files of a data set, on disk or at any address fsspec knows."""

from __future__ import annotations

import errno
import itertools
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from pipelines.data import web
from pipelines.data.rows import BadRow, Reason
from pipelines.store import remote

PARQUET_SUFFIXES = (".parquet", ".pq")

MAX_FILE_BYTES = 2**28
"""A picture, a caption or metadata of one row that is larger is taken for a mistake."""

LEADS_NOWHERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
"""Of a link: its row is refused. Whatever else keeps a file from being looked at stops the plan."""

DISK_AWAY = {
    errno.EIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENODEV,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
}
"""A failing disk or mount, or a process that is out of something: no fault of the row's."""


@dataclass(frozen=True)
class File:
    """A file of a data set, as it was listed."""

    path: str
    """Relative to the data set's folder."""

    bytes: int
    stamp: tuple[Any, ...]
    """Changes when the file does: local times in ns, or an object store's checksum. Empty if
    there is none to be had without reading the file."""


@dataclass(frozen=True)
class Place:
    """A data set's folder. Paths are relative to it, with ``/``."""

    folder: str

    @property
    def fs(self) -> Any:
        return filesystem(self.folder)[0]

    @property
    def is_local(self) -> bool:
        return "://" not in self.folder

    def full(self, path: str) -> str:
        """The path as the file system takes it."""
        return posixpath.join(filesystem(self.folder)[1], path)

    def open(self, path: str) -> Any:
        full = self.full(path)
        if self.is_local and not _is_file(full):
            raise NoFile(errno.EINVAL, "is no plain file", full)
        return self.fs.open(full, "rb")

    def fetch(self, address: str) -> bytes:
        """What lies at a path inside the folder or at a URL (http, https, or this folder's kind).

        Raises:
            BadRow: The path leads out of the folder, the file is too large, or is not to be had.
            OSError: The folder's own disk or bucket is away.
        """
        if "://" in address:
            protocols = self.fs.protocol
            mine = {protocols} if isinstance(protocols, str) else set(protocols)
            scheme = address.partition("://")[0].lower()
            if "::" in address or scheme not in ({"http", "https"} | (mine - {"file", "local"})):
                raise BadRow(Reason.PATH_OUTSIDE, f"{scheme}:// is not read from a data set")
            if scheme in ("http", "https"):
                return _of_size(web.fetch(address, MAX_FILE_BYTES))
            full = address
        else:
            full = self.full(self.inside(address))

        def read() -> bytes:
            if self.is_local and not _is_file(full):
                raise NoFile("no plain file")
            with self.fs.open(full, "rb") as file:
                found: bytes = file.read(MAX_FILE_BYTES + 1)
            return found

        try:
            data = read() if self.is_local else remote.attempt(read)
        except Exception as error:  # each of fsspec's back ends raises errors of its own
            if isinstance(error, remote.StorageError) and remote.is_transient(error.__cause__):
                raise  # the bucket is away, which is no fault of the row's
            if self.is_local and isinstance(error, OSError) and error.errno in DISK_AWAY:
                raise
            shown = address.partition("?")[0]  # what follows may be a signature
            raise BadRow(Reason.IMAGE_FETCH, f"{shown}: {type(error).__name__}") from error
        return _of_size(data)

    def inside(self, path: str) -> str:
        """The path, relative to the folder and without dots; BadRow if it leads out of it."""
        root = filesystem(self.folder)[1]
        relative = posixpath.relpath(posixpath.join("/", root, path), posixpath.join("/", root))
        if relative == ".." or relative.startswith("../"):
            raise BadRow(Reason.PATH_OUTSIDE, path)
        return relative


class NoFile(OSError):
    """A pipe, a socket or a device: opened, it might never answer."""


def _is_file(full: str) -> bool:
    """False for what is neither a file nor missing; a missing one is left to whoever opens it."""
    path = Path(full)
    return path.is_file() or not path.exists()


def _of_size(data: bytes) -> bytes:
    if len(data) > MAX_FILE_BYTES:
        raise BadRow(Reason.IMAGE_LARGE, f"more than {MAX_FILE_BYTES} bytes")
    return data


@lru_cache(maxsize=8)
def _chained(url: str) -> tuple[Any, str]:
    """Kept, as a zip is closed with its file system, under whoever reads it."""
    return remote.filesystem(url)


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a path or URL, and the path in it."""
    if "://" in url:
        try:
            fs, path = (_chained if "::" in url else remote.filesystem)(url)
        except (OSError, BadZipFile) as error:  # of what an address with :: leads through
            if isinstance(error, remote.StorageError) or "::" not in url:
                raise
            raise ValueError(f"{url} cannot be opened ({error}); correct `path:`") from error
        return fs, path.rstrip("/")
    return LocalFileSystem(), str(Path(url).expanduser().absolute())


@dataclass(frozen=True)
class Folder:
    """One of the folders that make up a data set."""

    place: Place
    files: list[File]
    """By path."""

    prefix: str = ""
    """Ends in ``/`` and comes before its files' paths where the data set's other folders are at
    hand; nothing for the first folder."""


def find_each(paths: str | list[str]) -> list[Folder]:
    """The folders that a ``path:`` names, each as it would be found alone.

    Files of a list that lie in one folder, or in a folder that is listed too, belong to that
    folder. A list's first folder has no prefix; each further one has its own name, or as much of
    its path as tells its files from those before. So a folder that is added to the end of a list
    leaves the names and the content of all others as they were.

    Raises:
        ValueError: A file or folder is not there, or they lie on several storage systems.
    """
    if isinstance(paths, str):
        return [Folder(*find(paths))]
    if not paths:
        raise ValueError("`path:` is an empty list; name a folder or some files")
    found = [find(path) for path in paths]
    kinds = sorted({p.folder.partition("://")[0] if not p.is_local else "" for p, _ in found})
    if len(kinds) > 1:
        raise ValueError(
            f"`path:` lists files of different places ({', '.join(k or 'disk' for k in kinds)}); "
            "bring them to one"
        )
    outermost: dict[str, dict[str, File]] = {}
    listed = {place.folder for place, _ in found}
    for place, files in found:
        above = [f for f in _parents(place.folder) if f in listed]
        home = above[-1] if above else place.folder
        within = place.folder.removeprefix(home).strip("/")
        for file in files:
            path = posixpath.join(within, file.path)
            outermost.setdefault(home, {})[path] = replace(file, path=path)
        outermost.setdefault(home, {})
    folders: list[Folder] = []
    taken: set[str] = set()
    for home, members in outermost.items():
        prefix = next(p for p in _prefixes(home, first=not folders) if _is_free(p, members, taken))
        taken.update(f"{prefix}{path}" for path in members)
        files = sorted(members.values(), key=lambda f: f.path)
        folders.append(Folder(Place(home), files, prefix))
    return folders


def _parents(folder: str) -> Iterator[str]:
    """The folders that a folder lies in, from the nearest on."""
    while (above := folder.rpartition("/")[0]) and not above.endswith(":/"):
        yield above
        folder = above


def _prefixes(folder: str, first: bool) -> Iterator[str]:
    if first:
        yield ""
    names = [name for name in folder.rpartition("://")[2].split("/") if name]
    for many in range(1, len(names) + 1):
        yield "/".join(names[-many:]) + "/"
    for number in itertools.count(2):
        yield f"{'/'.join(names)} ({number})/"


def _is_free(prefix: str, members: Iterable[str], taken: set[str]) -> bool:
    return taken.isdisjoint(f"{prefix}{path}" for path in members)


def find(path: str) -> tuple[Place, list[File]]:
    """A folder and every file in it, by path. Of a single file, the folder it lies in and it.

    Left out are hidden ones (``.name``), and Parquet files in folders ``_name`` (but not
    ``_column=value``), where Spark and Delta keep what is no data.

    Raises:
        ValueError: There is no such file or folder, or some of it may not be looked at.
    """
    if "://" in path:
        place, files = _find_remote(path)
    else:
        root = Path(filesystem(path)[1])
        if not _exists(root):
            raise _absent(path)
        if not root.is_dir():
            return Place(str(root.parent)), [_local(root.parent, root.name)]
        place, files = Place(str(root)), _walk(root)
    return place, sorted((f for f in files if not _is_hidden(f.path)), key=lambda f: f.path)


def _find_remote(url: str) -> tuple[Place, list[File]]:
    _chained.cache_clear()
    fs, root = filesystem(url)
    fs.invalidate_cache()
    try:
        listing = remote.attempt(lambda: _listed(fs, root), url)
        if not listing and not remote.attempt(lambda: fs.exists(root), url):
            raise _absent(url)
        if root in listing:  # a file
            _measure(fs, listing)
            return Place(url.rpartition("/")[0]), [_remote(posixpath.basename(root), listing[root])]
        listing = {
            name: info
            for name, info in listing.items()
            if info["type"] != "directory" and not name.endswith("/")  # a mark of a folder
        }
        _measure(fs, listing)
    except (ValueError, remote.StorageError):
        raise
    except Exception as error:  # each of fsspec's back ends raises errors of its own
        raise ValueError(
            f"{url} cannot be listed ({type(error).__name__}: {error}); check the address, and "
            "that it may be read from here"
        ) from error
    names = {name: posixpath.relpath(f"/{name}", f"/{root}") for name in listing}
    return Place(url.rstrip("/")), [_remote(names[name], info) for name, info in listing.items()]


def _listed(fs: Any, root: str) -> dict[str, Any]:
    """All files below a folder. What walks it folder by folder leaves out, by itself, those that
    it could not list."""
    walks = type(fs).find is AbstractFileSystem.find or (
        isinstance(fs, AsyncFileSystem) and type(fs)._find is AsyncFileSystem._find
    )
    found: dict[str, Any] = fs.find(root, detail=True, **({"on_error": _raise} if walks else {}))
    return found


def _raise(error: Exception) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _measure(fs: Any, listing: dict[str, Any]) -> None:
    """Adds sizes and checksums where listing gives none, as over HTTP."""
    bare = [name for name, info in listing.items() if info.get("size") is None]
    with ThreadPoolExecutor(16) as threads:
        measured = threads.map(lambda name: remote.attempt(lambda: fs.info(name), name), bare)
        for name, info in zip(bare, measured, strict=True):
            listing[name] = {**listing[name], **info}


def _absent(path: str) -> ValueError:
    hint = ", for braces are not expanded" if "{" in path else ""
    return ValueError(
        f"data folder {path} does not exist; set `path:` to a folder, a file or a list "
        f"of files{hint}"
    )


def _is_hidden(path: str) -> bool:
    *folders, name = path.split("/")
    if any(part.startswith(".") for part in (*folders, name)):
        return True
    left_over = any(part.startswith("_") and "=" not in part for part in folders)
    return left_over and name.lower().endswith(PARQUET_SUFFIXES)


def _walk(root: Path) -> list[File]:
    """Follows links, as data sets are often put together from them, but no folder twice."""
    found, seen = [], set()
    for folder, folders, names in os.walk(root, onerror=_unreadable, followlinks=True):
        status = _looked(Path(folder).stat)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        within = Path(folder).relative_to(root)
        found += [_local(root, (within / name).as_posix()) for name in names]
    return found


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:
        if error.errno not in LEADS_NOWHERE:
            _unreadable(error)
        return False
    except ValueError:  # with a null character in it
        return False
    return True


def _local(root: Path, path: str) -> File:
    if not _exists(root / path):  # a link that leads nowhere: listed, so that reading it says so
        return File(path, 0, ())
    status = _looked((root / path).stat)
    return File(path, status.st_size, (status.st_mtime_ns, status.st_ctime_ns))


def _looked(stat: Callable[[], os.stat_result]) -> os.stat_result:
    try:
        return stat()
    except OSError as error:
        _unreadable(error)
        raise AssertionError("unreachable") from error


def _unreadable(error: OSError) -> None:
    raise ValueError(
        f"{error.filename} cannot be read ({error.strerror}), so that part of the data set "
        "would be missing; make it readable, or move it away"
    ) from error


def _remote(path: str, info: dict[str, Any]) -> File:
    checksums = [str(info[k]) for k in ("md5Hash", "ETag", "etag") if info.get(k)]
    return File(path, int(info.get("size") or 0), tuple(checksums[:1]))
