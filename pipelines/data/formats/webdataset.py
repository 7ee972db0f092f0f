"""WebDataset: consecutive members of a tar that share a key form one row."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from typing import Any

from pipelines.data.captions import as_list, caption_lines
from pipelines.data.files import File, Location
from pipelines.data.formats.shard import (
    IMAGE_SUFFIXES,
    RawRow,
    RawRows,
    SourceShard,
    caption_fields,
    first_present,
)
from pipelines.data.formats.tar import members
from pipelines.data.rows import Reason, RejectedRow
from pipelines.spec.data import Source

Sample = dict[str, bytes]
"""Suffix → content."""

MAX_GROUP_MEMBERS = 64
"""How many members with the same key up to its first dot are grouped at most. Bounds memory: all
members of a tar may share that part."""

ORDER_HINT = "write the tar again, sorted by name: tar --sort=name"


def check_members(location: Location, files: list[File]) -> None:
    """ValueError if no tar has a member. Reads up to the first that has one or is damaged."""
    for file in files:
        with location.open(file.path) as handle:
            if next(members(handle, lambda name: False), None):
                return
    raise ValueError(
        f"{location.full(files[0].path)} and all other tar files there hold no row; set `path:` to "
        "a folder with tar files that have rows"
    )


def read(source: Source, shard: SourceShard) -> RawRows:
    """The rows of a tar. A row whose members lie apart is rejected once, with a hint to sort the
    tar."""
    incomplete: dict[str, RejectedRow] = {}
    with shard.location.open(shard.path) as handle:
        for found in samples(handle, source, shard):
            if isinstance(found, RejectedRow):
                yield found
                continue
            key, sample = found
            try:
                row = row_of(key, sample, source, shard)
            except (ValueError, RecursionError) as error:
                yield RejectedRow(key, shard.path, Reason.METADATA_BROKEN, str(error)[:200])
                continue
            if isinstance(row, RawRow) and _is_incomplete(row):
                lacks = Reason.IMAGE_MISSING if row.image is None else Reason.CAPTION_MISSING
                before = incomplete.pop(key, None)
                if before and before.reason != lacks:
                    yield RejectedRow(key, shard.path, Reason.MEMBER_ORDER, ORDER_HINT)
                    continue
                if before:
                    yield before
                incomplete[key] = RejectedRow(key, shard.path, lacks)
            else:
                yield row
    yield from incomplete.values()


def _is_incomplete(row: RawRow) -> bool:
    return row.image is None or row.captions == [None]


def samples(
    handle: Any, source: Source, shard: SourceShard
) -> Iterator[tuple[str, Sample] | RejectedRow]:
    """Group members into samples. A damaged member leaves its row incomplete, hence rejected
    later."""
    endings = endings_of(source)
    group: dict[str, Sample] = {}  # key → sample; all keys share the part before the first dot
    for member in members(handle, lambda name: split(name, endings)[1] in endings):
        if member.bad:
            yield RejectedRow(member.name or shard.name, shard.path, member.bad, member.detail)
            continue
        name, ending = split(member.name, endings)
        if name.startswith("/") or ".." in name.split("/"):
            yield RejectedRow(member.name, shard.path, Reason.PATH_OUTSIDE)
            continue
        hidden = any(part.startswith(".") for part in name.split("/"))
        if member.data is None or hidden or not posixpath.basename(name):  # or of an unwanted type
            continue
        other = group and first_part(name) != first_part(next(iter(group)))
        full = name not in group and len(group) >= MAX_GROUP_MEMBERS
        if other or full or ending in group.get(name, ()):
            yield from split_group(group)
            group = {}
        elif group and name not in group:  # a complete sample need not wait for the next key
            last = next(reversed(group))
            if "." in posixpath.basename(last) and is_pair(group[last]):
                yield last, group.pop(last)
        group.setdefault(name, Sample())[ending] = member.data
    yield from split_group(group)


def endings_of(source: Source) -> frozenset[str]:
    """Suffixes of the members to read; those that the spec names may have several parts."""
    named = (source.image.lower(), source.caption.lower())
    return frozenset({*IMAGE_SUFFIXES, "txt", "json", *named})


def split(name: str, endings: frozenset[str]) -> tuple[str, str]:
    """Split a member's name into key and suffix.

    ``a/v1.5_7.input.PNG`` → ``a/v1.5_7``, ``input.png`` if ``input.png`` is in ``endings``; else
    the name is split at its last dot.
    """
    folder, _, base = name.removeprefix("./").rpartition("/")
    at = base.find(".")
    while 0 <= at < base.rfind(".") and base[at + 1 :].lower() not in endings:
        at = base.find(".", at + 1)
    stem, ending = (base[:at], base[at + 1 :]) if at >= 0 else (base, "")
    return (f"{folder}/{stem}" if folder or name.startswith("/") else stem), ending.lower()


def first_part(key: str) -> str:
    """The key by WebDataset's own rule: the name up to its first dot."""
    folder, slash, base = key.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


def is_pair(sample: Sample) -> bool:
    """Whether a sample has both picture and text, so that it is a row by itself."""
    return "txt" in sample and any(ending in IMAGE_SUFFIXES for ending in sample)


def split_group(group: dict[str, Sample]) -> Iterator[tuple[str, Sample]]:
    """Split members that share a key up to its first dot into samples.

    ``7.jpg``, ``7.txt`` and ``7.mask.png`` are one sample: by WebDataset's rule the mask is another
    member of it. ``v1.5.jpg`` and ``v1.5.txt`` are a sample whose key has a dot.
    """
    if not group:
        return
    plain = group.get(first_part(next(iter(group))))
    for key, sample in group.items():
        if sample is plain or plain is None or is_pair(sample):
            yield key, sample


def row_of(key: str, sample: Sample, source: Source, shard: SourceShard) -> RawRow | RejectedRow:
    """One row from a sample; ValueError if its JSON is invalid."""
    meta = json.loads(sample["json"].decode("utf-8", "surrogateescape")) if "json" in sample else {}
    if not isinstance(meta, dict):
        raise ValueError(f"the JSON is not an object but {meta!r:.40}")
    endings = IMAGE_SUFFIXES if source.image == "image" else (source.image.lower(),)
    images = [sample[ending] for ending in endings if ending in sample]
    if len(images) > 1:
        there = " and ".join(e for e in endings if e in sample)
        return RejectedRow(
            key, shard.path, Reason.IMAGE_AMBIGUOUS, f"{there}; choose one with `image:`"
        )
    return RawRow(
        key=meta.get(source.key) if source.key else key,
        source=shard.path,
        image=images[0] if images else None,
        captions=captions_of(sample, meta, source),
        scores={name: meta.get(name) for name in source.scores},
    )


def captions_of(sample: Sample, meta: dict[str, Any], source: Source) -> list[Any]:
    """Captions from the member or JSON field that the spec names; by default from the ``.txt``."""
    if (named := source.caption.lower()) in sample and named != "json":
        return caption_lines(sample[named])
    if "txt" in sample and source.caption == "caption":
        return caption_lines(sample["txt"])
    return as_list(first_present(meta, caption_fields(source)))
