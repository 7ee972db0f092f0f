"""A data set as shards, and a shard as rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.data import caption_file
from pipelines.data.captions import objection
from pipelines.data.files import MAX_FILE_BYTES, PARQUET_SUFFIXES, Folder, Place, find_each
from pipelines.data.formats import folder, parquet, webdataset
from pipelines.data.formats.shard import Found, SourceShard, is_image, name_of
from pipelines.data.identity import identify_each
from pipelines.data.rows import Bad, BadRow, Reason, Row, split_captions
from pipelines.spec.data import Source

READERS = {
    "parquet": parquet.read,
    "folder": folder.read,
    "coco": folder.read,
    "webdataset": webdataset.read,
}
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


def list_shards(source: Source) -> list[SourceShard]:
    """A data set's units of work, in the order of their names in it.

    Reads listings, local files that were not hashed before, one Parquet footer and a caption file.

    Raises:
        ValueError: Nothing usable at ``path``, several formats, or a column is missing.
    """
    folders, kind = find_format(source)
    found = [shard for folder_ in folders for shard in _shards(source, folder_, kind)]
    if not found:
        raise ValueError(f"{_named(folders)} has no file of the format {kind!r}; change `format:`")
    return found


def _shards(source: Source, home: Folder, kind: str) -> list[SourceShard]:
    mine = [f for f in home.files if _kind(f.path) == kind]
    if kind == "folder":
        mine += [f for f in home.files if f.path.lower() in caption_file.NAMES]
    if not mine:
        return []
    for file in mine if home.place.is_local else ():
        if not is_image(file.path) and not Path(full := home.place.full(file.path)).is_file():
            raise ValueError(f"{full} is a pipe, or a link that leads nowhere; move it away")
    if kind in ("folder", "coco"):
        caption_file.check(source, home, coco=kind == "coco")
        return folder.shards(source, home, coco=kind == "coco")
    if kind == "parquet":
        parquet.check_columns(source, home.place, mine)
    if kind == "webdataset":
        webdataset.check_members(home.place, mine)
    identities = identify_each(home.place, [[file] for file in mine])
    return [
        SourceShard(
            name=name_of(home.prefix + file.path),
            folder=home.place.folder,
            path=file.path,
            identity=identity,
            bytes=file.bytes,
            prefix=home.prefix,
        )
        for file, identity in zip(mine, identities, strict=True)
    ]


def read_shard(source: Source, shard: SourceShard) -> Iterator[Row | Bad]:
    """Streams a shard's rows, and a Bad for whatever is none.

    Keys are unique in a shard; :mod:`pipelines.data.duplicate_keys` finds the same key in two.

    Raises:
        OSError: The shard's file went away, or the connection to it; try again.
    """
    keys: set[str] = set()
    for found in READERS[_kind(shard.path) or "folder"](source, shard):  # a folder's caption file
        key, place = _text(found.key), _text(shard.prefix + found.source)
        if isinstance(found, Bad):
            yield Bad(key, place, found.reason, _text(found.detail))
            continue
        try:
            if not key:
                raise BadRow(Reason.KEY_MISSING)
            if key in keys:
                raise BadRow(Reason.KEY_REPEATED)
            if found.image is None:
                raise BadRow(Reason.IMAGE_MISSING)
            texts = found.captions if source.captions == "all" else found.captions[:1]
            captions, dropped = split_captions([objection(t) for t in texts], key, place)
            scores = _numbers(found)
            row = Row(key, place, _image(shard.place, found.image), captions, scores)
        except BadRow as bad:
            yield Bad(key, place, bad.reason, _text(bad.detail))
            continue
        keys.add(key)
        yield row
        yield from dropped


def find_format(source: Source) -> tuple[list[Folder], str]:
    """The folders at a source's path, and the format of their files.

    Raises:
        ValueError: There is no data at the path, or files of several formats.
    """
    if source.path is None:
        raise ValueError("this source has no `path:`; its pictures are made")
    if isinstance(source.path, str) and caption_file.is_coco(source.path):
        return [caption_file.coco_folder(source.path)], "coco"
    folders = find_each(source.path)
    if source.format:
        return folders, source.format
    files = [file for found in folders for file in found.files]
    kinds = sorted({kind for f in files if (kind := _kind(f.path))})
    if "coco" in kinds:
        if "folder" in kinds:
            return folders, "coco"
        kinds = [kind for kind in kinds if kind != "coco"]  # captions of no picture that is here
    if not kinds and any(f.path.lower() in caption_file.NAMES for f in files):
        return folders, "folder"  # of pictures by their addresses
    if len(kinds) > 1:
        raise ValueError(
            f"{_named(folders)} has files of several formats ({', '.join(kinds)}); "
            "say with `format:` which are meant"
        )
    if not kinds:
        raise ValueError(
            f"data folder {_named(folders)} holds no .parquet file, no .tar file and no picture; "
            "set `path:` to one that does"
        )
    return folders, kinds[0]


def _named(folders: list[Folder]) -> str:
    more = f" (and {len(folders) - 1} more)" if len(folders) > 1 else ""
    return f"{folders[0].place.folder}{more}"


def _kind(path: str) -> str | None:
    name = path.lower()
    if name.endswith(PARQUET_SUFFIXES):
        return "parquet"
    if name.endswith(TAR_SUFFIXES):
        return "webdataset"
    if caption_file.is_coco(path):
        return "coco"
    return "folder" if is_image(name) else None


def _text(value: Any) -> str:
    """A key, path or detail that can be written anywhere: bytes that are no UTF-8 escaped."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    text = "" if value is None else str(value).strip()
    return text.encode("utf-8", "backslashreplace").decode()


def _numbers(found: Found) -> dict[str, float]:
    """The scores that are there; BadRow if one is no finite number."""
    numbers = {}
    for name, value in found.scores.items():
        if value is None or value == "":
            continue
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise BadRow(Reason.SCORE_TYPE, f"{name} is {value!r}")
        numbers[name] = number
    return numbers


def _image(place: Place, image: Any) -> bytes:
    """The picture's bytes, fetched if they are elsewhere; BadRow if there are none."""
    if isinstance(image, str):
        image = place.fetch(image) if image else b""
    if not isinstance(image, bytes):
        raise BadRow(Reason.IMAGE_TYPE, type(image).__name__)
    if not image:
        raise BadRow(Reason.IMAGE_EMPTY)
    if len(image) > MAX_FILE_BYTES:
        raise BadRow(Reason.IMAGE_LARGE, f"{len(image)} bytes")
    return image
