"""List and read the files of a data set, on disk or at any URL that fsspec supports."""

from __future__ import annotations

import errno
import itertools
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zipfile import BadZipFile

from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from pipelines.data import web
from pipelines.data.rows import Reason, RowError
from pipelines.spec.hosts import Hosts
from pipelines.store import remote

PARQUET_SUFFIXES = (".parquet", ".pq")

MAX_FILE_BYTES = 2**28
"""A larger picture, caption or metadata file of one row is rejected."""

LOCAL_URL = re.compile(r"(file|local)://(?!.*::)")
"""Begin of a URL that is a local path."""

NO_HOSTS = Hosts()

BROKEN_LINK_ERRORS = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
"""A broken link: only its row is rejected. Any other error on a file stops the plan."""

DISK_FAILURES = {
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
"""A failing disk or mount, or an exhausted process limit: raised, as the row is not to blame."""


@dataclass(frozen=True)
class File:
    """A file of a data set, as listed."""

    path: str
    """Relative to the data set's folder."""

    bytes: int
    stamp: tuple[Any, ...]
    """Changes when the file changes: local times in ns, or an object store's checksum. Empty if it
    is unknown without reading the file."""


@dataclass(frozen=True)
class Location:
    """A data set's folder: a local path or a URL. Paths in it are relative and use ``/``."""

    folder: str
    follow_links: bool = False
    """Whether files of a local folder may be links that lead out of it."""

    @property
    def fs(self) -> Any:
        """The fsspec file system."""
        return filesystem(self.folder)[0]

    @property
    def is_local(self) -> bool:
        """Whether the folder is a local path, not a URL."""
        return "://" not in self.folder

    def full(self, path: str) -> str:
        """The path as the file system expects it."""
        return posixpath.join(filesystem(self.folder)[1], path)

    def open(self, path: str) -> Any:
        """Open a file for reading.

        Raises:
            NotAFile: It is a pipe, a socket or a device.
            ValueError: It is a link that leads out of the folder.
        """
        full = self.full(path)
        if self.is_local and not _is_file(full):
            raise NotAFile(errno.EINVAL, "not a regular file", full)
        if self.leads_out(full):
            raise _outside(full)
        return self.fs.open(full, "rb")

    def leads_out(self, full: str) -> bool:
        """Whether a local path is, or is behind, a link that leads out of the folder."""
        if self.follow_links or not self.is_local or "\0" in full:  # no file has such a name
            return False
        root = os.path.realpath(filesystem(self.folder)[1])
        return not Path(os.path.realpath(full)).is_relative_to(root)

    def fetch(self, address: str, hosts: Hosts = NO_HOSTS) -> bytes:
        """Read a file of one row.

        Args:
            address: A path inside the folder, or a URL: http, https, or the folder's own scheme.
            hosts: The hosts and buckets that a URL may name.

        Raises:
            RowError: The path or a link leads out of the folder, the URL's host is not among
                ``hosts``, or the file is missing or too large.
            OSError: The folder's own disk or bucket is unavailable.
        """
        if "://" in address:
            protocols = self.fs.protocol
            mine = {protocols} if isinstance(protocols, str) else set(protocols)
            scheme = address.partition("://")[0].lower()
            if "::" in address or scheme not in ({"http", "https"} | (mine - {"file", "local"})):
                raise RowError(Reason.PATH_OUTSIDE, f"{scheme}:// is not allowed in a data set")
            if scheme in ("http", "https"):
                return _of_size(web.fetch(address, MAX_FILE_BYTES, hosts))
            host = urlsplit(address).hostname or ""
            if not hosts.has(host):
                raise RowError(Reason.URL_HOST, f"{host}; to fetch from it, name it there")
            full = address
        else:
            full = self.full(self.inside(address))
            if self.leads_out(full):
                raise RowError(
                    Reason.PATH_OUTSIDE, f"{address} is a link; `follow_links: true` allows it"
                )

        def read() -> bytes:
            if self.is_local and not _is_file(full):
                raise NotAFile("not a regular file")
            with self.fs.open(full, "rb") as file:
                found: bytes = file.read(MAX_FILE_BYTES + 1)
            return found

        try:
            data = read() if self.is_local else remote.attempt(read)
        except Exception as error:  # each of fsspec's back ends raises errors of its own
            if isinstance(error, remote.StorageError) and error.passes:
                raise  # the bucket is unavailable; the row is not to blame
            if self.is_local and isinstance(error, OSError) and error.errno in DISK_FAILURES:
                raise
            shown = address.partition("?")[0]  # the query may hold a signature
            raise RowError(Reason.IMAGE_FETCH, f"{shown}: {type(error).__name__}") from error
        return _of_size(data)

    def inside(self, path: str) -> str:
        """Normalize a path relative to the folder; RowError if it leads out of it."""
        root = filesystem(self.folder)[1]
        relative = posixpath.relpath(posixpath.join("/", root, path), posixpath.join("/", root))
        if relative == ".." or relative.startswith("../"):
            raise RowError(Reason.PATH_OUTSIDE, path)
        return relative


class NotAFile(OSError):
    """A pipe, a socket or a device: reading it might block for ever."""


def _is_file(full: str) -> bool:
    """False for pipes, sockets, devices and folders. True for a missing path: opening it will
    fail."""
    path = Path(full)
    return path.is_file() or not path.exists()


def _of_size(data: bytes) -> bytes:
    if len(data) > MAX_FILE_BYTES:
        raise RowError(Reason.IMAGE_LARGE, f"more than {MAX_FILE_BYTES} bytes")
    return data


@lru_cache(maxsize=8)
def _open_chain(url: str) -> tuple[Any, str]:
    """Cached: a zip closes with its file system, while it may still be read."""
    return remote.filesystem(url)


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a path or URL, and the path in it.

    Raises:
        ValueError: An address with ``::`` leads through a file that cannot be opened.
    """
    if "://" in url:
        try:
            fs, path = (_open_chain if "::" in url else remote.filesystem)(url)
        except (OSError, BadZipFile) as error:  # from a file that an address with :: leads through
            if isinstance(error, remote.StorageError) or "::" not in url:
                raise
            raise ValueError(f"{url} cannot be opened ({error}); correct `path:`") from error
        return fs, path.rstrip("/")
    return LocalFileSystem(), str(Path(url).expanduser().absolute())


@dataclass(frozen=True)
class Folder:
    """One of the folders that make up a data set, with its files."""

    location: Location
    files: list[File]
    """Sorted by path."""

    prefix: str = ""
    """Prepended to the files' paths where several folders are combined. Ends in ``/``; empty for
    the first folder."""


def list_folders(paths: str | list[str], *, follow_links: bool = False) -> list[Folder]:
    """The folders that a ``path:`` names, each listed as if it were the only one.

    Files in the same folder, or in a folder that is listed as well, are grouped under that folder.
    The first folder has no prefix. Each further folder's prefix is its name, or as much of its path
    as keeps its files apart from those before. So appending a folder to the list changes nothing
    for the others.

    Args:
        paths: As ``path:`` of a source.
        follow_links: Whether links may lead out of their folder.

    Raises:
        ValueError: A file or folder is missing, they are on several storage systems, or a link
            leads out of its folder.
    """
    if isinstance(paths, str):
        return [Folder(*list_files(paths, follow_links=follow_links))]
    if not paths:
        raise ValueError("`path:` is an empty list; name a folder or some files")
    found = [list_files(path, follow_links=follow_links) for path in paths]
    kinds = sorted({p.folder.partition("://")[0] if not p.is_local else "" for p, _ in found})
    if len(kinds) > 1:
        raise ValueError(
            "`path:` lists files on several storage systems "
            f"({', '.join(k or 'disk' for k in kinds)}); copy them to one"
        )
    outermost: dict[str, dict[str, File]] = {}
    listed = {location.folder for location, _ in found}
    for location, files in found:
        above = [f for f in _parents(location.folder) if f in listed]
        home = above[-1] if above else location.folder
        within = location.folder.removeprefix(home).strip("/")
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
        folders.append(Folder(Location(home, follow_links), files, prefix))
    return folders


def _parents(folder: str) -> Iterator[str]:
    """The parents of a folder, nearest first."""
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


def list_files(path: str, *, follow_links: bool = False) -> tuple[Location, list[File]]:
    """A folder and all files in it, sorted by path; a single file comes with its parent folder.

    Skips hidden files (``.name``), and Parquet files in folders named ``_name`` (but not
    ``_column=value``), where Spark and Delta keep temporary files and logs.

    Args:
        path: A local path or a URL.
        follow_links: Whether links may lead out of the folder.

    Raises:
        ValueError: The file or folder does not exist, part of it cannot be read, or a link leads
            out of it.
    """
    path = LOCAL_URL.sub("", path)
    if "://" in path:
        location, files = _find_remote(path)
    else:
        root = Path(filesystem(path)[1])
        if not _exists(root):
            raise _absent(path)
        if not root.is_dir():
            location = Location(str(root.parent), follow_links)
            return location, [_local(location, root.name)]
        location = Location(str(root), follow_links)
        files = _walk_folder(location)
    return location, sorted((f for f in files if not _is_hidden(f.path)), key=lambda f: f.path)


def _find_remote(url: str) -> tuple[Location, list[File]]:
    _open_chain.cache_clear()
    fs, root = filesystem(url)
    fs.invalidate_cache()
    try:
        listing = remote.attempt(lambda: _listed(fs, root), url)
        if not listing and not remote.attempt(lambda: fs.exists(root), url):
            raise _absent(url)
        if root in listing:  # a file
            _add_sizes(fs, listing)
            return Location(url.rpartition("/")[0]), [
                _remote(posixpath.basename(root), listing[root])
            ]
        listing = {
            name: info
            for name, info in listing.items()
            if info["type"] != "directory" and not name.endswith("/")  # a folder marker
        }
        _add_sizes(fs, listing)
    except (ValueError, remote.StorageError):
        raise
    except Exception as error:  # each of fsspec's back ends raises errors of its own
        raise ValueError(
            f"{url} cannot be listed ({type(error).__name__}: {error}); check the address, and "
            "that this machine may read it"
        ) from error
    names = {name: posixpath.relpath(f"/{name}", f"/{root}") for name in listing}
    return Location(url.rstrip("/")), [_remote(names[name], info) for name, info in listing.items()]


def _listed(fs: Any, root: str) -> dict[str, Any]:
    """All files below a folder. fsspec's own walk silently skips folders that it cannot list; here
    that is an error."""
    walks = type(fs).find is AbstractFileSystem.find or (
        isinstance(fs, AsyncFileSystem) and type(fs)._find is AsyncFileSystem._find
    )
    found: dict[str, Any] = fs.find(root, detail=True, **({"on_error": _raise} if walks else {}))
    return found


def _raise(error: Exception) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _add_sizes(fs: Any, listing: dict[str, Any]) -> None:
    """Add sizes and checksums to a listing that lacks them, as over HTTP."""
    bare = [name for name, info in listing.items() if info.get("size") is None]
    with ThreadPoolExecutor(16) as threads:
        measured = threads.map(lambda name: remote.attempt(lambda: fs.info(name), name), bare)
        for name, info in zip(bare, measured, strict=True):
            listing[name] = {**listing[name], **info}


def _absent(path: str) -> ValueError:
    hint = " (braces are not expanded)" if "{" in path else ""
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


def _walk_folder(location: Location) -> list[File]:
    """List a local folder. Follows links, since data sets are often made of them; each folder
    once."""
    root, seen = Path(location.folder), set()
    found: list[File] = []
    for folder, folders, names in os.walk(root, onerror=_unreadable, followlinks=True):
        status = _stat(Path(folder).stat)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        within = Path(folder).relative_to(root)
        is_link = folder != str(root) and Path(folder).is_symlink()
        if is_link and not _is_hidden(within.as_posix()) and location.leads_out(folder):
            raise _outside(folder)
        found += [_local(location, (within / name).as_posix()) for name in names]
    return found


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:
        if error.errno not in BROKEN_LINK_ERRORS:
            _unreadable(error)
        return False
    except ValueError:  # the path has a null character
        return False
    return True


def _local(location: Location, path: str) -> File:
    full = Path(location.folder) / path
    if not _exists(full):  # a broken link: listed, so that reading it reports it
        return File(path, 0, ())
    if full.is_symlink() and not _is_hidden(path) and location.leads_out(str(full)):
        raise _outside(full)
    status = _stat(full.stat)
    return File(path, status.st_size, (status.st_mtime_ns, status.st_ctime_ns))


def _stat(stat: Callable[[], os.stat_result]) -> os.stat_result:
    try:
        return stat()
    except OSError as error:
        _unreadable(error)
        raise AssertionError("unreachable") from error


def _unreadable(error: OSError) -> None:
    raise ValueError(
        f"{error.filename} cannot be read ({error.strerror}), so part of the data set would be "
        "missing; make it readable, or move it away"
    ) from error


def _outside(full: str | Path) -> ValueError:
    return ValueError(
        f"{full} is a link that leads out of its data folder; write `follow_links: true` beside "
        "`path:` if you trust what it leads to, or copy the file there"
    )


def _remote(path: str, info: dict[str, Any]) -> File:
    checksums = [str(info[k]) for k in ("md5Hash", "ETag", "etag") if info.get(k)]
    return File(path, int(info.get("size") or 0), tuple(checksums[:1]))
