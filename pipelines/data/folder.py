"""A folder of pictures, captioned by a ``.txt`` beside each or by one caption file at the root.

The unit is a bucket of pictures, chosen by the hash of their path without its ending: a picture
that is added, removed or captioned anew changes one bucket. There are as few buckets as hold about
``BUCKET_FILES`` each, a power of two; when a growing data set doubles, so does their number, and
all are read again. The caption file is read once for the plan, and once for each bucket: for
millions of pictures Parquet or WebDataset is the better home.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipelines.data.captions import lines, listed
from pipelines.data.identity import identify
from pipelines.data.places import File, Place
from pipelines.data.rows import Bad, BadRow, Reason
from pipelines.data.settings import Source
from pipelines.data.shard import (
    IMAGE_SUFFIXES,
    Findings,
    Found,
    SourceShard,
    caption_fields,
    fields,
    first_of,
)

BUCKET_FILES = 1024
CAPTION_FILES = ("captions.jsonl", "captions.csv", "metadata.jsonl", "metadata.csv")


def shards(source: Source, place: Place, files: list[File]) -> list[SourceShard]:
    """The buckets that hold anything; ValueError if there are two caption files."""
    tables = [f.path for f in files if f.path in CAPTION_FILES]
    if len(tables) > 1:
        raise ValueError(
            f"{place.folder} has {' and '.join(tables)}; keep the one that captions the pictures"
        )
    if not tables and (source.key or source.scores):
        raise ValueError(
            f"{place.folder} has no captions.jsonl or .csv for `key:` and `scores:` to be in; "
            "add one, or remove the two"
        )
    pictures = [f for f in files if is_image(f.path)]
    texts = [] if tables else [f for f in files if f.path.endswith(".txt")]
    count = 1
    while len(pictures) > count * BUCKET_FILES:
        count *= 2
    content: list[list[File]] = [[] for _ in range(count)]
    for file in [*pictures, *texts]:
        content[bucket_of(stem(file.path), count)].append(file)
    said = [hashlib.sha256() for _ in range(count)]
    spoken = set()
    for line in table(source, place, tables[0]) if tables else ():
        bucket = bucket_of(line.belongs_to, count)
        said[bucket].update(f"{line}\n".encode("utf-8", "surrogateescape"))
        spoken.add(bucket)
    return [
        SourceShard(
            name=f"bucket-{i:05d}-of-{count:05d}",
            folder=place.folder,
            path=tables[0] if tables else "",
            identity=identify(place, content[i]) + (f"+{said[i].hexdigest()}" if tables else ""),
            bytes=sum(f.bytes for f in content[i]),
            files=tuple(f.path for f in content[i]),
            bucket=(i, count),
        )
        for i in range(count)
        if content[i] or i in spoken
    ]


def read(source: Source, shard: SourceShard) -> Findings:
    return _captioned_by_table(source, shard) if shard.path else _captioned_by_text(source, shard)


def _captioned_by_text(source: Source, shard: SourceShard) -> Findings:
    texts = {stem(path): path for path in shard.files if path.endswith(".txt")}
    pictures = [path for path in shard.files if is_image(path)]
    for path in pictures:
        text = texts.get(stem(path))
        try:
            captions = lines(shard.place.fetch(text)) if text else [None]
        except BadRow as bad:
            yield Bad(stem(path), text or path, Reason.CAPTION_MISSING, str(bad))
            continue
        yield Found(key=stem(path), source=path, image=path, captions=captions)
    for lonely in sorted(texts.keys() - {stem(path) for path in pictures}):
        yield Bad(lonely, texts[lonely], Reason.IMAGE_MISSING)


def _captioned_by_table(source: Source, shard: SourceShard) -> Findings:
    index, count = shard.bucket
    found: dict[str, Line] = {}
    for line in table(source, shard.place, shard.path):
        if bucket_of(line.belongs_to, count) != index:
            continue
        if line.bad:
            yield Bad(f"line {line.number}", shard.path, line.bad, line.detail)
        elif line.file in found:
            found[line.file].captions.extend(line.captions)
        else:
            found[line.file] = line
    there = {path for path in shard.files if is_image(path)}
    for path in sorted(there | found.keys()):
        if path not in found:
            yield Bad(stem(path), path, Reason.CAPTION_MISSING, f"{shard.path} does not name it")
        elif path not in there:
            detail = f"line {found[path].number} of {shard.path} names it"
            yield Bad(stem(path), path, Reason.IMAGE_MISSING, detail)
        else:
            line = found[path]
            yield Found(
                key=line.key if source.key else stem(path),
                source=path,
                image=path,
                captions=line.captions,
                scores=line.scores,
            )


def is_image(path: str) -> bool:
    return path.rpartition(".")[2].lower() in IMAGE_SUFFIXES


def stem(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.rpartition('.')[0] or name}"


def bucket_of(text: str, count: int) -> int:
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % count


@dataclass
class Line:
    """What one line of a caption file says."""

    number: int = field(repr=False)  # a line may move: no part of what is identified
    file: str = ""
    key: Any = None
    captions: list[Any] = field(default_factory=list)
    scores: dict[str, Any] = field(default_factory=dict)
    bad: Reason | None = None
    detail: str = ""

    @property
    def belongs_to(self) -> str:
        """What decides its bucket: the picture it names, or else its own text."""
        return stem(self.file) if self.file else self.detail


def table(source: Source, place: Place, path: str) -> Iterator[Line]:
    """The lines of a caption file, one at a time."""
    with place.open(path) as handle:
        records = _json_lines(handle) if path.endswith(".jsonl") else _csv_lines(handle)
        for number, record in records:
            if isinstance(record, str):
                yield Line(number, bad=Reason.METADATA_BROKEN, detail=record[:200])
                continue
            file = first_of(record, fields(source.image, "image", ("file", "file_name")))
            if not isinstance(file, str) or not file:
                yield Line(number, bad=Reason.IMAGE_MISSING, detail=f"{record}"[:200])
                continue
            try:
                yield Line(
                    number,
                    place.inside(file),
                    record.get(source.key) if source.key else None,
                    listed(first_of(record, caption_fields(source))),
                    {name: record.get(name) for name in source.scores},
                )
            except BadRow as bad:
                yield Line(number, bad=bad.reason, detail=bad.detail)


def _json_lines(handle: Any) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Each line's number and fields, or its text if it has none."""
    for number, raw in enumerate(handle, 1):
        text = raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            record = None
        yield number, record if isinstance(record, dict) else text


def _csv_lines(handle: Any) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """As :func:`_json_lines`. A row of another width than the head is broken: a comma too many."""
    text = (
        line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape") for line in handle
    )
    rows = csv.reader(text, strict=True)
    head: list[str] = []
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield rows.line_num, f"{error} (line {rows.line_num})"
            continue
        if not head:
            head = row
        elif row and len(row) != len(head):
            yield rows.line_num, ",".join(row)
        elif row:
            yield rows.line_num, dict(zip(head, row, strict=True))
