"""A first look at a data set, before there is a spec: format, columns, sizes, from a sample.

Nothing is hashed and nothing is decoded, so that it takes seconds whatever the size.
"""

from __future__ import annotations

import csv
import itertools
import json
import posixpath
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.data import caption_file
from pipelines.data.files import PARQUET_SUFFIXES, File, Folder, Location
from pipelines.data.formats import parquet, webdataset
from pipelines.data.formats.shard import SourceShard, caption_fields, is_image, is_text, shard_name
from pipelines.data.formats.tar import members
from pipelines.data.pictures import size_of
from pipelines.data.rows import Reason, RejectedRow, Row, RowError
from pipelines.data.sources import TAR_SUFFIXES, find_format, read_shard
from pipelines.formatting import byte_size
from pipelines.spec.data import Source

SAMPLE_ROWS = 512
SAMPLE_FILES = 8
SAMPLE_S = 20.0
"""Reading the sample ends after this time, as with pictures behind slow addresses."""

FOOTERS = {True: 256, False: 16}
"""Parquet footers read to count rows, of local files and of others."""

FIRST_MEMBERS = 64
MEMBER_BYTES = 1536
"""Headers and padding in a tar, of a picture and its caption; for an estimate."""

SHOWN = 40
"""Characters of a binary caption that an error shows."""

FORMATS = {
    "parquet": "Parquet",
    "folder": "a folder of pictures",
    "coco": "COCO",
    "webdataset": "WebDataset",
}
IMAGES = (
    *("image", "jpg", "jpeg", "png", "webp", "img", "picture", "image_bytes", "bytes"),
    *("file_name", "filename", "file", "image_path", "path", "image_url", "url"),
)
CAPTIONS = (
    *("caption", "text", "captions", "prompt", "txt", "description", "title"),
    *("alt_text", "alt", "sentence", "sentences"),
)
"""Usual names of the two columns, the likeliest first; case does not matter."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a data set holds."""

    source: Source
    """What the spec must say to read it: ``path``, and settings that differ from the defaults."""

    format: str
    folders: list[str]
    files: list[str]
    """Parquet or tar files, with their full paths; of other formats none."""

    file_bytes: list[int]
    """The size of each of :attr:`files`."""

    columns: list[str]
    """Columns of Parquet or of a caption file; of a tar the endings of its first members."""

    pictures: int
    """Picture files listed; 0 for Parquet and tar."""

    bytes: int
    pairs: int
    exact: bool
    """Whether :attr:`pairs` was counted, rather than estimated."""

    sides: list[int]
    """The shortest side in pixels of each sampled picture, ascending."""

    words: list[int]
    """The number of words of each sampled caption, ascending."""

    sampled: int
    """Rows read."""

    complete: bool
    """Whether the sample is the whole data set."""

    bad: dict[str, int] = field(default_factory=dict)
    """Sampled rows that cannot be used, by reason."""

    def share(self, side: int) -> float:
        """The share of sampled pictures whose shortest side is at least ``side`` pixels."""
        return sum(s >= side for s in self.sides) / len(self.sides)


def inspect(
    path: str | list[str],
    *,
    format: str | None = None,
    image: str | None = None,
    caption: str | None = None,
    urls: list[str] | None = None,
    follow_links: bool = False,
) -> Inspection:
    """Look at a data set.

    Args:
        path: As ``path:`` of a source: a folder, a file, an address or a list of them.
        format: As ``format:`` of a source; found by the files' names if None.
        image: The column of the pictures; found if None.
        caption: The column of the captions; found if None.
        urls: As ``urls:`` of a source: hosts that pictures may be fetched from.
        follow_links: As ``follow_links:`` of a source.

    Raises:
        ValueError: There is no data set, its columns cannot be told apart, or no row of the sample
            can be used.
    """
    given: dict[str, Any] = {"format": format, "image": image, "caption": caption, "urls": urls}
    given |= {"follow_links": follow_links}
    source = Source.model_validate({"path": path} | {k: v for k, v in given.items() if v})
    folders, kind = find_format(source)
    homes = [replace(home, files=_data_files(home, kind)) for home in folders]
    homes = [home for home in homes if home.files]
    if not homes:
        raise ValueError(f"{folders[0].location.folder} has no file of the format {kind!r}")
    source, columns = _with_columns(source, homes, kind)
    for home in homes:
        _check(source, home, kind)
    shards = [shard for home in homes for shard in _shards(source, home, kind)]
    sample = _sample(source, shards)
    if not sample.sides and kind == "webdataset":
        source = _with_json_caption(source, homes, given_caption=caption)
        sample = _sample(source, shards)
    if not sample.sides:
        raise _no_row(source, homes[0], columns, sample)
    full = [posixpath.join(s.folder, s.path) for s in shards if kind in ("parquet", "webdataset")]
    pairs, exact = _pairs(source, shards, kind, sample)
    return Inspection(
        source=source,
        format=kind,
        folders=[home.location.folder for home in homes],
        files=full,
        file_bytes=[s.bytes for s in shards if full],
        columns=columns,
        pictures=sum(is_image(f.path) for home in homes for f in home.files),
        bytes=sum(s.bytes for s in shards),
        pairs=pairs,
        exact=exact,
        sides=sorted(sample.sides),
        words=sorted(sample.words),
        sampled=sample.read,
        complete=sample.complete,
        bad=dict(sample.bad.most_common()),
    )


# -- files and columns ---------------------------------------------------------------------------


def _data_files(home: Folder, kind: str) -> list[File]:
    suffixes = {"parquet": PARQUET_SUFFIXES, "webdataset": TAR_SUFFIXES}
    if kind in suffixes:
        return [f for f in home.files if f.path.lower().endswith(suffixes[kind])]
    return home.files


def _check(source: Source, home: Folder, kind: str) -> None:
    """ValueError where no row could be read with these settings, as the plan would find."""
    if kind == "parquet":
        parquet.check_columns(source, home.location, home.files)
    elif kind == "webdataset":
        webdataset.check_members(home.location, home.files)
    else:
        caption_file.check(source, home, coco=kind == "coco")


def _with_columns(source: Source, homes: list[Folder], kind: str) -> tuple[Source, list[str]]:
    """The source with the columns of its pictures and captions named, and all columns there are."""
    home = homes[0]
    if kind == "parquet":
        types = next((t for f in home.files if (t := _parquet_columns(home.location, f))), {})
        return _named(source, types, defaults=("image",)), list(types)
    if kind == "webdataset":
        return source, sorted({ending for ending, _ in _members(home)})
    path = caption_file.find_caption_file(home.location, home.files, coco=kind == "coco")
    if path is None or kind == "coco":
        return source, []
    types = _caption_file_columns(home.location, path)
    return _named(source, types, defaults=("image", "file", "file_name")), list(types)


def _named(source: Source, types: Mapping[str, str], defaults: tuple[str, ...]) -> Source:
    """With ``image:`` and ``caption:`` where the columns have other names than the defaults.

    Args:
        types: column → ``image``, ``text`` or nothing of the two.
        defaults: columns that are found without ``image:``.
    """
    chosen: dict[str, str] = {}
    pictures = [name for name, kind in types.items() if kind == "image"]
    texts = [name for name, kind in types.items() if kind == "text"]
    if "image" not in source.model_fields_set and not set(defaults) & set(types):
        addresses = [name for name in texts if name.lower() in IMAGES]
        chosen["image"] = _choose("image", pictures or addresses, IMAGES, types)
    if "caption" not in source.model_fields_set and not set(caption_fields(source)) & set(types):
        own = [n for n in texts if n not in (chosen.get("image", source.image), source.key)]
        chosen["caption"] = _choose("caption", own, CAPTIONS, types)
    return Source.model_validate(source.model_dump(exclude_unset=True) | chosen)


def _choose(
    what: str, candidates: list[str], usual: tuple[str, ...], types: Mapping[str, str]
) -> str:
    """The candidate with the likeliest name, or the only one."""
    named = sorted(
        (name for name in candidates if name.lower() in usual),
        key=lambda name: usual.index(name.lower()),
    )
    if named:
        return named[0]
    if len(candidates) == 1:
        return candidates[0]
    there = f"several columns may be the {what}" if candidates else f"no column is the {what}"
    raise ValueError(
        f"{there}: there are {', '.join(list(types)[:20]) or 'none'}; name yours with "
        f"--{what} COLUMN"
    )


def _parquet_columns(location: Location, file: File) -> dict[str, str]:
    """Column → its type as :func:`_named` takes it; empty for a damaged file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with location.open(file.path) as handle:
            schema = pq.read_schema(handle)
    except (pa.ArrowException, OSError):
        return {}
    return {column.name: _kind_of(column.type) for column in schema}


def _kind_of(type_: Any) -> str:
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(type_) or types.is_list(type_) or types.is_large_list(type_):
        inside = _kind_of(type_.value_type)
        return inside if inside == "text" else ""
    if types.is_struct(type_):
        return "image" if {f.name for f in type_} <= {"bytes", "path"} else ""
    if types.is_binary(type_) or types.is_large_binary(type_):
        return "image"
    return "text" if types.is_string(type_) or types.is_large_string(type_) else ""


def _caption_file_columns(location: Location, path: str) -> dict[str, str]:
    """The same of a CSV or JSON lines file, by its first records."""
    with location.open(path) as handle:
        text = (line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace") for line in handle)
        first = list(itertools.islice(text, FIRST_MEMBERS))
    records: list[dict[str, Any]] = []
    if path.lower().endswith(".csv"):
        records = list(csv.DictReader(first))
    for line in first if not records else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        records += [record] if isinstance(record, dict) else []
    columns: dict[str, str] = {}
    for record in records:
        for name, value in record.items():
            if isinstance(name, str) and columns.get(name, "") == "":
                columns[name] = _kind_of_value(value)
    return columns


def _kind_of_value(value: Any) -> str:
    if isinstance(value, list):
        return "text" if value and isinstance(value[0], str) else ""
    if not isinstance(value, str) or not value:
        return ""
    return "image" if is_image(value.partition("?")[0]) else "text"


def _members(home: Folder) -> Iterator[tuple[str, bytes | None]]:
    """Ending and content (of JSON only) of a tar's first members."""
    with home.location.open(home.files[0].path) as handle:
        found = members(handle, lambda name: name.lower().endswith(".json"))
        for member in itertools.islice(found, FIRST_MEMBERS):
            if not member.bad:
                yield posixpath.basename(member.name).partition(".")[2].lower(), member.data


def _with_json_caption(source: Source, homes: list[Folder], given_caption: str | None) -> Source:
    """With ``caption:`` of a tar whose captions are in a JSON field or member of another name."""
    if given_caption:
        return source
    texts: dict[str, str] = {}
    for ending, data in _members(homes[0]):
        if data is None and ending in CAPTIONS:
            texts[ending] = "text"
        try:
            record = json.loads(data) if data else None
        except ValueError:
            continue
        for name, value in record.items() if isinstance(record, dict) else ():
            if name.lower() in CAPTIONS and _kind_of_value(value) == "text":
                texts[name] = "text"
    if not texts:
        return source
    chosen = _choose("caption", list(texts), CAPTIONS, texts)
    return Source.model_validate(source.model_dump(exclude_unset=True) | {"caption": chosen})


# -- the sample ----------------------------------------------------------------------------------


def _shards(source: Source, home: Folder, kind: str) -> list[SourceShard]:
    """What :func:`read_shard` reads, without the identities that a plan needs."""
    location = home.location

    def shard(path: str, size: int, **more: Any) -> SourceShard:
        return SourceShard(
            name=shard_name(home.prefix + path),
            folder=location.folder,
            path=path,
            identity="",
            bytes=size,
            prefix=home.prefix,
            follow_links=source.follow_links,
            **more,
        )

    if kind in ("parquet", "webdataset"):
        return [shard(f.path, f.bytes) for f in home.files]
    coco = kind == "coco"
    path = caption_file.find_caption_file(location, home.files, coco=coco) or ""
    files = [f for f in home.files if is_image(f.path) or (is_text(f.path) and not path)]
    names = {f.path for f in files}
    beside = caption_file.pictures_folder(source, location, path, names) if coco else ""
    size = sum(f.bytes for f in files)
    return [shard(path, size, pictures_folder=beside, files=tuple(f.path for f in files))]


@dataclass
class _Sample:
    sides: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    bad: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    read: int = 0
    row_bytes: int = 0
    """Of all sound rows: their pictures and captions."""

    complete: bool = True


def _sample(source: Source, shards: list[SourceShard]) -> _Sample:
    """The first rows of some files, spread over the data set. Pictures are not decoded."""
    some = _spread(shards, SAMPLE_FILES)
    found = _Sample(complete=len(some) == len(shards))
    end_s = time.monotonic() + SAMPLE_S
    for i, shard in enumerate(some):
        limit = -(-(SAMPLE_ROWS - found.read) // (len(some) - i))
        for number, row in enumerate(read_shard(source, shard)):
            if number == limit or time.monotonic() > end_s:
                found.complete = False
                break
            _add(found, row)
    return found


def _spread(items: list[Any], n: int) -> list[Any]:
    """At most ``n`` items, at equal distances."""
    n = min(n, len(items))
    return [items[i * len(items) // n] for i in range(n)]


def _add(found: _Sample, row: Row | RejectedRow) -> None:
    if isinstance(row, RejectedRow) and row.reason == Reason.CAPTION_DROPPED:
        return  # its row comes too
    found.read += 1
    try:
        if isinstance(row, RejectedRow):
            raise RowError(row.reason, row.detail)
        found.sides.append(min(size_of(row.image)))
        found.words += [len(caption.split()) for caption in row.captions]
        found.row_bytes += len(row.image) + sum(len(c.encode()) for c in row.captions)
    except RowError as bad:
        found.bad[str(bad.reason)] += 1
        found.examples.setdefault(str(bad.reason), bad.detail)


def _no_row(source: Source, home: Folder, columns: list[str], sample: _Sample) -> ValueError:
    if not sample.read:
        return ValueError(f"{home.location.folder} holds no row")
    reason, _ = sample.bad.most_common(1)[0]
    example = sample.examples[reason]
    if reason in (Reason.CAPTION_ENCODING, Reason.CAPTION_CONTROL) and len(example) > SHOWN:
        example = f"{example[: SHOWN - 1]}…"  # of a binary column
    detail = f" ({example})" if example else ""
    there = f"; it has {', '.join(columns[:20])}: name yours with --image and --caption"
    return ValueError(
        f"none of the {sample.read} rows read from {home.location.folder} can be used: "
        f"{reason}{detail}{there if columns else ''}"
    )


def _lines(source: Source, shards: list[SourceShard]) -> int:
    """Lines of caption files, whose pictures lie elsewhere."""
    return sum(
        1
        for s in shards
        for _ in caption_file.read_lines(source, s.location, s.path, s.pictures_folder)
    )


def _pairs(
    source: Source, shards: list[SourceShard], kind: str, sample: _Sample
) -> tuple[int, bool]:
    """How many pairs there are, and whether they were counted."""
    if sample.complete:
        return sample.read, True
    if kind in ("folder", "coco"):
        listed = sum(is_image(path) for s in shards for path in s.files)
        return listed or _lines(source, shards), True
    size = sum(s.bytes for s in shards)
    if kind == "parquet":
        some = _spread(shards, FOOTERS[shards[0].location.is_local])
        with ThreadPoolExecutor(16) as threads:
            read = [(s, n) for s, n in zip(some, threads.map(_rows_of, some)) if n is not None]
        rows, of = sum(n for _, n in read), sum(s.bytes for s, _ in read)
        return (
            (rows, True) if len(read) == len(shards) else (round(rows * size / max(1, of)), False)
        )
    sound = len(sample.sides)
    return max(1, round(size / (sample.row_bytes / sound + MEMBER_BYTES))), False


def _rows_of(shard: SourceShard) -> int | None:
    found = parquet.footer_of(shard.location, File(shard.path, shard.bytes, ()))
    return None if found is None else found[1]


# -- in words ------------------------------------------------------------------------------------


def lines(found: Inspection) -> list[tuple[str, str]]:
    """What was found, as labels and texts."""
    files = len(found.files)
    holds = f"{files:,} file{'s' * (files != 1)}" if files else f"{found.pictures:,} pictures"
    about = "" if found.exact else "about "
    text = (
        f"{FORMATS[found.format]}, {holds}, {byte_size(found.bytes)}, {about}{found.pairs:,} pairs"
    )
    rows = "" if found.complete else f", in a sample of {found.sampled:,} rows"
    told = [("found", text)]
    named = {
        key: getattr(found.source, key)
        for key in ("image", "caption")
        if key in found.source.model_fields_set
    }
    if "image" in named and "caption" not in named:
        there = [name for name in caption_fields(found.source) if name in found.columns]
        named |= {"caption": there[0]} if there else {}
    if named:
        told.append(("columns", ", ".join(f"{key}: {name}" for key, name in named.items())))
    told.append(("pictures", f"shortest side {_range(found.sides)} pixels{rows}"))
    told.append(("captions", f"{_range(found.words)} words{rows}"))
    if bad := sum(found.bad.values()):
        reasons = ", ".join(f"{reason} ({n:,})" for reason, n in list(found.bad.items())[:3])
        told.append(("unusable", f"{bad:,} of {found.sampled:,} rows read: {reasons}"))
    return told


def _range(ascending: list[int]) -> str:
    least, most, median = ascending[0], ascending[-1], ascending[len(ascending) // 2]
    return f"{least:,}" if least == most else f"{least:,} to {most:,}, median {median:,}"
