"""A folder of pictures, captioned by a ``.txt`` beside each or by one caption file at the root.

The pictures, sorted by path without suffix, are cut into runs of about ``SHARD_PICTURES``; each run
is a shard. The hash of a picture's name decides whether a new run starts there (content-defined
chunking). So adding or removing a picture changes its own run and at most a few after it, and
pictures with consecutive names, such as those of a new day, fall into few runs. Within a run,
pictures are ordered by the hash of their name, since a folder often holds one kind of picture. The
caption file is read once for the plan and once for each run: for millions of pictures, prefer
Parquet or WebDataset.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable

from pipelines.data import caption_file
from pipelines.data.caption_file import Line, read_lines
from pipelines.data.captions import caption_lines
from pipelines.data.files import File, Folder
from pipelines.data.formats.shard import (
    RawRow,
    RawRows,
    SourceShard,
    is_image,
    is_text,
    shard_name,
    stem,
    utf8,
)
from pipelines.data.identity import identify_each
from pipelines.data.rows import Reason, RejectedRow, RowError
from pipelines.spec.data import Source

SHARD_PICTURES = 1024
"""Average size; a shard has from half to twice as many pictures, the last one fewer."""


def shards(source: Source, home: Folder, *, coco: bool = False) -> list[SourceShard]:
    """The shards of a folder: runs of pictures.

    Args:
        coco: Whether the caption file is in COCO's format.

    Raises:
        ValueError: There are two caption files, or the caption file matches no picture.
    """
    location, files = home.location, home.files
    path = caption_file.find_caption_file(location, files, coco=coco)
    if not path and (source.key or source.scores):
        raise ValueError(
            f"{location.folder} has no captions.jsonl or captions.csv to read `key:` and `scores:` "
            "from; add one, or remove these two settings"
        )
    pictures = [f for f in files if is_image(f.path)]
    names, pictures_folder = {f.path for f in pictures}, ""
    texts = [] if path else [f for f in files if is_text(f.path)]
    if path and coco:
        pictures_folder = caption_file.pictures_folder(source, location, path, names)
    starts = _starts(stem(f.path) for f in pictures)
    content: list[list[File]] = [[] for _ in starts]
    for file in [*pictures, *texts]:
        content[_run_of(stem(file.path), starts)].append(file)
    digests = [hashlib.sha256() for _ in starts]
    captioned, used, first = set(), False, None
    for line in read_lines(source, location, path, pictures_folder) if path else ():
        run = _run_of(line.belongs_to, starts)
        digests[run].update(utf8(f"{line}\n"))  # the repr: see Line
        captioned.add(run)
        if not used:
            used = bool((line.file in names or "://" in line.file) and any(line.captions))
            first = first if first and not first.bad else line
    if path and not used:
        raise caption_file.no_match_error(location, path, first)
    runs = [i for i, some in enumerate(content) if some or i in captioned]
    identities = identify_each(location, [content[i] for i in runs])
    return [
        SourceShard(
            name="pictures-" + shard_name(home.prefix + starts[i]).lstrip("-"),
            folder=location.folder,
            path=path or "",
            pictures_folder=pictures_folder,
            identity=identity + (f"+{digests[i].hexdigest()}" if path else ""),
            bytes=sum(f.bytes for f in content[i]),
            prefix=home.prefix,
            follow_links=source.follow_links,
            files=tuple(f.path for f in content[i]),
            span=(starts[i], starts[i + 1] if i + 1 < len(starts) else None),
        )
        for i, identity in zip(runs, identities, strict=True)
    ]


def _starts(stems: Iterable[str]) -> list[str]:
    """Where each run starts; the first starts at the empty string."""
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
    digest = hashlib.sha256(utf8(text)).digest()
    return int.from_bytes(digest[:8], "big")


def _shuffle_key(path: str) -> tuple[int, str]:
    """Sort key that mixes kinds of pictures, but keeps pictures of the same stem together."""
    return _hash(stem(path)), path


def read(source: Source, shard: SourceShard) -> RawRows:
    """The rows of one run of pictures."""
    return (
        _read_with_caption_file(source, shard)
        if shard.path
        else _read_with_text_files(source, shard)
    )


def _read_with_text_files(source: Source, shard: SourceShard) -> RawRows:
    texts = {stem(path): path for path in shard.files if is_text(path)}
    pictures = sorted((path for path in shard.files if is_image(path)), key=_shuffle_key)
    for path in pictures:
        key, text = shard.prefix + stem(path), texts.get(stem(path))
        try:
            captions = caption_lines(shard.location.fetch(text)) if text else [None]
        except RowError as bad:
            yield RejectedRow(key, text or path, Reason.CAPTION_MISSING, str(bad))
            continue
        yield RawRow(key=key, source=path, image=path, captions=captions)
    for lonely in sorted(texts.keys() - {stem(path) for path in pictures}):
        yield RejectedRow(shard.prefix + lonely, texts[lonely], Reason.IMAGE_MISSING)


def _read_with_caption_file(source: Source, shard: SourceShard) -> RawRows:
    first, beyond = shard.span
    found: dict[str, Line] = {}
    for line in read_lines(source, shard.location, shard.path, shard.pictures_folder):
        if line.belongs_to < first or (beyond is not None and line.belongs_to >= beyond):
            continue
        if line.bad:
            yield RejectedRow(f"line {line.number}", shard.path, line.bad, line.detail)
        elif line.file in found:
            found[line.file].captions.extend(line.captions)
        else:
            found[line.file] = line
    there = {path for path in shard.files if is_image(path)}
    for path in sorted(there | found.keys(), key=_shuffle_key):
        key = shard.prefix + stem(path)
        if path not in found:
            yield RejectedRow(key, path, Reason.CAPTION_MISSING, f"{shard.path} does not name it")
        elif path not in there and "://" not in path:
            detail = f"line {found[path].number} of {shard.path} names it"
            yield RejectedRow(key, path, Reason.IMAGE_MISSING, detail)
        else:
            line = found[path]
            yield RawRow(
                key=line.key if source.key else key,
                source=path,
                image=path,
                captions=line.captions,
                scores=line.scores,
            )
