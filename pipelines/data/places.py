"""Files of a data set, on disk or at any address fsspec knows."""

from __future__ import annotations

import itertools
import os
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipelines import remote
from pipelines.data.rows import BadRow, Reason

MAX_FILE_BYTES = 2**28
"""A picture, a caption or metadata of one row that is larger is taken for a mistake."""


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
        return self.fs.open(self.full(path), "rb")

    def fetch(self, address: str) -> bytes:
        """What lies at a path inside the folder or at a URL (http, https, or this folder's kind).

        Raises:
            BadRow: The path leads out of the folder, the file is too large, or is not to be had.
        """
        if "://" in address:
            protocols = self.fs.protocol
            mine = {protocols} if isinstance(protocols, str) else set(protocols)
            scheme = urlsplit(address).scheme
            if "::" in address or scheme not in ({"http", "https"} | (mine - {"file", "local"})):
                raise BadRow(Reason.PATH_OUTSIDE, f"{scheme}:// is not read from a data set")
            fs, full = None, address
        else:
            fs, full = self.fs, self.full(self.inside(address))

        def read() -> bytes:
            with fs.open(full, "rb") if fs else fsspec.open(full, "rb") as file:
                found: bytes = file.read(MAX_FILE_BYTES + 1)
            return found

        try:
            data = remote.attempt(read) if fs and not self.is_local else read()
        except Exception as error:  # each of fsspec's back ends raises errors of its own
            if isinstance(error, remote.StorageError) and remote.is_transient(error.__cause__):
                raise  # the bucket is away, which is no fault of the row's
            shown = address.partition("?")[0]  # what follows may be a signature
            raise BadRow(Reason.IMAGE_FETCH, f"{shown}: {type(error).__name__}") from error
        if len(data) > MAX_FILE_BYTES:
            raise BadRow(Reason.IMAGE_LARGE, f"more than {MAX_FILE_BYTES} bytes")
        return data

    def inside(self, path: str) -> str:
        """The path, relative to the folder and without dots; BadRow if it leads out of it."""
        root = filesystem(self.folder)[1]
        relative = posixpath.relpath(posixpath.join("/", root, path), posixpath.join("/", root))
        if relative == ".." or relative.startswith("../"):
            raise BadRow(Reason.PATH_OUTSIDE, path)
        return relative


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a path or URL, and the path in it."""
    if "://" in url:
        fs, path = remote.filesystem(url)
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
    """A folder and every file in it, by path; hidden ones (``.name``) are left out.

    Of a single file, the folder it lies in and that file.

    Raises:
        ValueError: There is no such file or folder.
    """
    fs, root = filesystem(path)
    if "://" not in path:
        if fs.isfile(root):
            folder, name = posixpath.split(root)
            return Place(folder), [_local(Path(folder), name)]
        place, files, exists = Place(root), _walk(Path(root)), fs.exists(root)
    else:
        fs.invalidate_cache()
        listing = remote.attempt(lambda: fs.find(root, detail=True), path)
        if root in listing:  # a file
            name = posixpath.basename(root)
            return Place(path.rpartition("/")[0]), [_remote(name, listing[root])]
        files = [
            _remote(posixpath.relpath(name, root), info)
            for name, info in listing.items()
            if info["type"] != "directory" and not name.endswith("/")  # a mark of a folder
        ]
        place = Place(path.rstrip("/"))
        exists = bool(files) or remote.attempt(lambda: fs.exists(root), path)
    if not exists:
        hint = ", for braces are not expanded" if "{" in path else ""
        raise ValueError(
            f"data folder {path} does not exist; set `path:` to a folder, a file or a list "
            f"of files{hint}"
        )
    visible = [f for f in files if not any(p.startswith(".") for p in f.path.split("/"))]
    return place, sorted(visible, key=lambda f: f.path)


def _walk(root: Path) -> list[File]:
    """Follows links, as data sets are often put together from them, but no folder twice."""
    found, seen = [], set()
    for folder, folders, names in os.walk(root, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        within = Path(folder).relative_to(root)
        found += [_local(root, (within / name).as_posix()) for name in names]
    return found


def _local(root: Path, path: str) -> File:
    try:
        status = (root / path).stat()
    except OSError:  # a link that leads nowhere: listed, so that reading it says so
        return File(path, 0, ())
    return File(path, status.st_size, (status.st_mtime_ns, status.st_ctime_ns))


def _remote(path: str, info: dict[str, Any]) -> File:
    checksums = [str(info[k]) for k in ("md5Hash", "ETag", "etag") if info.get(k)]
    return File(path, int(info["size"] or 0), tuple(checksums[:1]))
