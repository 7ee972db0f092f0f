"""A folder of pictures, captioned by a ``.txt`` beside each or by one caption file at the root.

The unit is a run of pictures in the order of their paths without endings, some ``SHARD_PICTURES``
of them. Where a run ends is decided by the hash of the picture after it (content-defined chunking):
a picture that is added or removed changes the run it falls into and at most a few behind it, and
pictures whose names follow each other, such as a new day's, fall into few. Inside a run pictures
are in the order of their names' hashes, for a folder often holds one kind of picture. The caption
file is read once for the plan, and once for each run: for millions of pictures Parquet or
WebDataset is the better home.
"""

from __future__ import annotations

import csv
import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pipelines.data.captions import lines, listed
from pipelines.data.identity import identify_each
from pipelines.data.places import File, Folder, Place
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
    name_of,
)

SHARD_PICTURES = 1024
"""On average; a shard has from half to twice as many, the last one fewer."""

CAPTION_FILES = ("captions.jsonl", "captions.csv", "metadata.jsonl", "metadata.csv")


def shards(source: Source, home: Folder) -> list[SourceShard]:
    """The runs of pictures; ValueError if there are two caption files."""
    place, files = home.place, home.files
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
    starts = _starts(stem(f.path) for f in pictures)
    content: list[list[File]] = [[] for _ in starts]
    for file in [*pictures, *texts]:
        content[_run_of(stem(file.path), starts)].append(file)
    said = [hashlib.sha256() for _ in starts]
    spoken = set()
    for line in table(source, place, tables[0]) if tables else ():
        run = _run_of(line.belongs_to, starts)
        said[run].update(f"{line}\n".encode("utf-8", "surrogateescape"))
        spoken.add(run)
    runs = [i for i, some in enumerate(content) if some or i in spoken]
    identities = identify_each(place, [content[i] for i in runs])
    return [
        SourceShard(
            name="pictures-" + name_of(home.prefix + starts[i]).lstrip("-"),
            folder=place.folder,
            path=tables[0] if tables else "",
            identity=identity + (f"+{said[i].hexdigest()}" if tables else ""),
            bytes=sum(f.bytes for f in content[i]),
            prefix=home.prefix,
            files=tuple(f.path for f in content[i]),
            span=(starts[i], starts[i + 1] if i + 1 < len(starts) else None),
        )
        for i, identity in zip(runs, identities, strict=True)
    ]


def _starts(stems: Iterable[str]) -> list[str]:
    """Where each run begins; the first one begins before everything."""
    starts, size = [""], 0
    for name in sorted(set(stems)):
        ends = size >= SHARD_PICTURES // 2 and _hash(name) % (SHARD_PICTURES // 2) == 0
        if ends or size >= 2 * SHARD_PICTURES:
            starts.append(name)
            size = 0
        size += 1
    return starts


def _run_of(text: str, starts: list[str]) -> int:
    return bisect_right(starts, text) - 1


def _hash(text: str) -> int:
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")


def _mixed(path: str) -> tuple[int, str]:
    """Sorts pictures so that neighbours are of no kind; those of one stem stay together."""
    return _hash(stem(path)), path


def read(source: Source, shard: SourceShard) -> Findings:
    return _captioned_by_table(source, shard) if shard.path else _captioned_by_text(source, shard)


def _captioned_by_text(source: Source, shard: SourceShard) -> Findings:
    texts = {stem(path): path for path in shard.files if path.endswith(".txt")}
    pictures = sorted((path for path in shard.files if is_image(path)), key=_mixed)
    for path in pictures:
        key, text = shard.prefix + stem(path), texts.get(stem(path))
        try:
            captions = lines(shard.place.fetch(text)) if text else [None]
        except BadRow as bad:
            yield Bad(key, text or path, Reason.CAPTION_MISSING, str(bad))
            continue
        yield Found(key=key, source=path, image=path, captions=captions)
    for lonely in sorted(texts.keys() - {stem(path) for path in pictures}):
        yield Bad(shard.prefix + lonely, texts[lonely], Reason.IMAGE_MISSING)


def _captioned_by_table(source: Source, shard: SourceShard) -> Findings:
    first, beyond = shard.span
    found: dict[str, Line] = {}
    for line in table(source, shard.place, shard.path):
        if line.belongs_to < first or (beyond is not None and line.belongs_to >= beyond):
            continue
        if line.bad:
            yield Bad(f"line {line.number}", shard.path, line.bad, line.detail)
        elif line.file in found:
            found[line.file].captions.extend(line.captions)
        else:
            found[line.file] = line
    there = {path for path in shard.files if is_image(path)}
    for path in sorted(there | found.keys(), key=_mixed):
        key = shard.prefix + stem(path)
        if path not in found:
            yield Bad(key, path, Reason.CAPTION_MISSING, f"{shard.path} does not name it")
        elif path not in there:
            detail = f"line {found[path].number} of {shard.path} names it"
            yield Bad(key, path, Reason.IMAGE_MISSING, detail)
        else:
            line = found[path]
            yield Found(
                key=line.key if source.key else key,
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
        """What decides its run: the picture it names, or else its own text."""
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
