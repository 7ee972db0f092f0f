"""Split a data set into shards, and read a shard as rows."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.data import caption_file
from pipelines.data.captions import try_clean_caption
from pipelines.data.files import MAX_FILE_BYTES, PARQUET_SUFFIXES, Folder, Location, list_folders
from pipelines.data.formats import folder, parquet, webdataset
from pipelines.data.formats.shard import RawRow, SourceShard, is_image, shard_name
from pipelines.data.identity import identify_each
from pipelines.data.rows import Reason, RejectedRow, Row, RowError, split_captions
from pipelines.formatting import without_passwords
from pipelines.spec.data import Source
from pipelines.spec.hosts import Hosts

READERS = {
    "parquet": parquet.read,
    "folder": folder.read,
    "coco": folder.read,
    "webdataset": webdataset.read,
}
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


def list_shards(source: Source, among: Collection[str] | None = None) -> list[SourceShard]:
    """The shards of a data set, in the order of its files.

    Reads listings, local files that are not hashed yet, one Parquet footer and a caption file.

    Args:
        among: Leave out all other files; as :func:`pipelines.data.listing.files_of` names them.

    Raises:
        ValueError: ``path`` holds nothing usable or several formats, or a column is missing.
    """
    folders, kind = find_format(source, among)
    found = [shard for folder_ in folders for shard in _shards(source, folder_, kind)]
    if not found:
        raise ValueError(
            f"{_describe(folders)} has no file of the format {kind!r}; change `format:`"
        )
    return found


def _shards(source: Source, home: Folder, kind: str) -> list[SourceShard]:
    mine = [f for f in home.files if _kind(f.path) == kind]
    if kind == "folder":
        mine += [f for f in home.files if f.path.lower() in caption_file.NAMES]
    if not mine:
        return []
    for file in mine if home.location.is_local else ():
        if not is_image(file.path) and not Path(full := home.location.full(file.path)).is_file():
            raise ValueError(f"{full} is a pipe or a broken link; move it away")
    if kind in ("folder", "coco"):
        caption_file.check(source, home, coco=kind == "coco")
        return folder.shards(source, home, coco=kind == "coco")
    if kind == "parquet":
        parquet.check_columns(source, home.location, mine)
    if kind == "webdataset":
        webdataset.check_members(home.location, mine)
    identities = identify_each(home.location, [[file] for file in mine])
    return [
        SourceShard(
            name=shard_name(home.prefix + file.path),
            folder=home.location.folder,
            path=file.path,
            identity=identity,
            bytes=file.bytes,
            prefix=home.prefix,
            follow_links=source.follow_links,
        )
        for file, identity in zip(mine, identities, strict=True)
    ]


def read_shard(source: Source, shard: SourceShard) -> Iterator[Row | RejectedRow]:
    """Stream a shard's rows, and a RejectedRow for each row that cannot be used.

    Keys are unique within a shard; :mod:`pipelines.data.duplicate_keys` finds those in several.

    Raises:
        OSError: The shard's file, or the connection to it, was lost; try again.
    """
    keys: set[str] = set()
    hosts = Hosts.of(source.urls)
    format_ = _kind(shard.path) or "folder"  # a caption file has no kind of its own
    for found in READERS[format_](source, shard):
        key, source_path = _text(found.key), _text(shard.prefix + found.source)
        if isinstance(found, RejectedRow):
            yield RejectedRow(key, source_path, found.reason, _text(found.detail))
            continue
        try:
            if not key:
                raise RowError(Reason.KEY_MISSING)
            if key in keys:
                raise RowError(Reason.KEY_REPEATED)
            if found.image is None:
                raise RowError(Reason.IMAGE_MISSING)
            texts = found.captions if source.captions == "all" else found.captions[:1]
            captions, dropped = split_captions(
                [try_clean_caption(t) for t in texts], key, source_path
            )
            scores = _numbers(found)
            row = Row(
                key, source_path, _image(shard.location, found.image, hosts), captions, scores
            )
        except RowError as error:
            yield RejectedRow(key, source_path, error.reason, _text(error.detail))
            continue
        keys.add(key)
        yield row
        yield from dropped


def find_format(source: Source, among: Collection[str] | None = None) -> tuple[list[Folder], str]:
    """The folders at the source's path, and the format of their files.

    Args:
        among: As of :func:`list_shards`.

    Raises:
        ValueError: The source has no path, or its files are of no or several formats.
    """
    if source.path is None:
        raise ValueError("this source has no `path:`; its pictures are generated")
    if isinstance(source.path, str) and caption_file.is_coco_file(source.path):
        return [caption_file.coco_folder(source.path, follow_links=source.follow_links)], "coco"
    folders = list_folders(source.path, follow_links=source.follow_links)
    if among is not None:
        names = set(among)
        folders = [
            replace(home, files=[file for file in home.files if home.prefix + file.path in names])
            for home in folders
        ]
    if source.format:
        return folders, source.format
    files = [file for found in folders for file in found.files]
    kinds = sorted({kind for f in files if (kind := _kind(f.path))})
    if "coco" in kinds:
        if "folder" in kinds:
            return folders, "coco"
        # The folder has no pictures for a COCO file to caption.
        kinds = [kind for kind in kinds if kind != "coco"]
    if not kinds and any(f.path.lower() in caption_file.NAMES for f in files):
        return folders, "folder"  # the caption file names pictures by URL
    if len(kinds) > 1:
        raise ValueError(
            f"{_describe(folders)} has files of several formats ({', '.join(kinds)}); "
            "set `format:` to the one to read"
        )
    if not kinds:
        raise ValueError(
            f"data folder {_describe(folders)} holds no .parquet file, no .tar file and no "
            "picture; set `path:` to one that does"
        )
    return folders, kinds[0]


def _describe(folders: list[Folder]) -> str:
    more = f" (and {len(folders) - 1} more)" if len(folders) > 1 else ""
    return f"{folders[0].location.folder}{more}"


def _kind(path: str) -> str | None:
    name = path.lower()
    if name.endswith(PARQUET_SUFFIXES):
        return "parquet"
    if name.endswith(TAR_SUFFIXES):
        return "webdataset"
    if caption_file.is_coco_file(path):
        return "coco"
    return "folder" if is_image(name) else None


def _text(value: Any) -> str:
    """A key, path or detail as valid UTF-8 text, without passwords; other bytes are escaped."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    text = "" if value is None else str(value).strip()
    return without_passwords(text.encode("utf-8", "backslashreplace").decode())


def _numbers(found: RawRow) -> dict[str, float]:
    """The row's scores; RowError if one is not a finite number."""
    numbers = {}
    for name, value in found.scores.items():
        if value is None or value == "":
            continue
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise RowError(Reason.SCORE_TYPE, f"{name} is {value!r}")
        numbers[name] = number
    return numbers


def _image(location: Location, image: Any, hosts: Hosts) -> bytes:
    """The picture's bytes, fetched if the row names a path or URL; RowError if there are none."""
    if isinstance(image, str):
        image = location.fetch(image, hosts) if image else b""
    if not isinstance(image, bytes):
        raise RowError(Reason.IMAGE_TYPE, type(image).__name__)
    if not image:
        raise RowError(Reason.IMAGE_EMPTY)
    if len(image) > MAX_FILE_BYTES:
        raise RowError(Reason.IMAGE_LARGE, f"{len(image)} bytes")
    return image
