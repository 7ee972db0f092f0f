"""WebDataset: members of a tar that follow each other and share a key are one row."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from typing import Any

from pipelines.data.captions import lines, listed
from pipelines.data.files import File, Place
from pipelines.data.formats.shard import (
    IMAGE_SUFFIXES,
    Findings,
    Found,
    SourceShard,
    caption_fields,
    first_of,
)
from pipelines.data.formats.tar import members
from pipelines.data.rows import Bad, Reason
from pipelines.spec.data import Source

Sample = dict[str, bytes]
"""Ending → content."""

MOST_MEMBERS = 64
"""Of one key up to its first dot that are looked at together, for a tar may hold nothing else."""

ORDER = "write the tar anew, ordered by name: tar --sort=name"


def check_members(place: Place, files: list[File]) -> None:
    """ValueError if no tar has a member. Reads on to the first that has one, or is damaged."""
    for file in files:
        with place.open(file.path) as handle:
            if next(members(handle, lambda name: False), None):
                return
    raise ValueError(
        f"{place.full(files[0].path)} and all others of its kind hold no row; point `path:` at a "
        "folder of which a file does"
    )


def read(source: Source, shard: SourceShard) -> Findings:
    """The rows. One whose members lie apart is refused once, with a word about their order."""
    lonely: dict[str, Bad] = {}
    with shard.place.open(shard.path) as handle:
        for found in samples(handle, source, shard):
            if isinstance(found, Bad):
                yield found
                continue
            key, sample = found
            try:
                row = row_of(key, sample, source, shard)
            except (ValueError, RecursionError) as error:
                yield Bad(key, shard.path, Reason.METADATA_BROKEN, str(error)[:200])
                continue
            if isinstance(row, Found) and _is_half(row):
                lacks = Reason.IMAGE_MISSING if row.image is None else Reason.CAPTION_MISSING
                before = lonely.pop(key, None)
                if before and before.reason != lacks:
                    yield Bad(key, shard.path, Reason.MEMBER_ORDER, ORDER)
                    continue
                if before:
                    yield before
                lonely[key] = Bad(key, shard.path, lacks)
            else:
                yield row
    yield from lonely.values()


def _is_half(row: Found) -> bool:
    return row.image is None or row.captions == [None]


def samples(handle: Any, source: Source, shard: SourceShard) -> Iterator[tuple[str, Sample] | Bad]:
    """The rows' members. One that is lost leaves its row without it, which is then refused."""
    endings = endings_of(source)
    group: dict[str, Sample] = {}  # key → sample, of members that share what is before a dot
    for member in members(handle, lambda name: split(name, endings)[1] in endings):
        if member.bad:
            yield Bad(member.name or shard.name, shard.path, member.bad, member.detail)
            continue
        name, ending = split(member.name, endings)
        if name.startswith("/") or ".." in name.split("/"):
            yield Bad(member.name, shard.path, Reason.PATH_OUTSIDE)
            continue
        hidden = any(part.startswith(".") for part in name.split("/"))
        if member.data is None or hidden or not posixpath.basename(name):  # or of another kind
            continue
        other = group and first_part(name) != first_part(next(iter(group)))
        full = name not in group and len(group) >= MOST_MEMBERS
        if other or full or ending in group.get(name, ()):
            yield from divided(group)
            group = {}
        elif group and name not in group:  # a whole sample is not kept until the next key
            last = next(reversed(group))
            if "." in posixpath.basename(last) and is_pair(group[last]):
                yield last, group.pop(last)
        group.setdefault(name, Sample())[ending] = member.data
    yield from divided(group)


def endings_of(source: Source) -> frozenset[str]:
    """What a member may end in to be read; those that the source names may have several parts."""
    named = (source.image.lower(), source.caption.lower())
    return frozenset({*IMAGE_SUFFIXES, "txt", "json", *named})


def split(name: str, endings: frozenset[str]) -> tuple[str, str]:
    """``a/v1.5_7.input.PNG`` → ``a/v1.5_7``, ``input.png`` where that is an ending; else up to the
    last dot."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    at = base.find(".")
    while 0 <= at < base.rfind(".") and base[at + 1 :].lower() not in endings:
        at = base.find(".", at + 1)
    stem, ending = (base[:at], base[at + 1 :]) if at >= 0 else (base, "")
    return (f"{folder}/{stem}" if folder or name.startswith("/") else stem), ending.lower()


def first_part(key: str) -> str:
    """What WebDataset takes for the key: up to the first dot of the name."""
    folder, slash, base = key.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


def is_pair(sample: Sample) -> bool:
    """Whether it is a row by itself, whatever else has its key up to the first dot."""
    return "txt" in sample and any(ending in IMAGE_SUFFIXES for ending in sample)


def divided(group: dict[str, Sample]) -> Iterator[tuple[str, Sample]]:
    """The samples among members that share a key up to its first dot.

    ``7.jpg``, ``7.txt`` and ``7.mask.png`` are one sample: by WebDataset's rule the mask is its
    further member. ``v1.5.jpg`` and ``v1.5.txt`` have a dot in their key.
    """
    if not group:
        return
    plain = group.get(first_part(next(iter(group))))
    for key, sample in group.items():
        if sample is plain or plain is None or is_pair(sample):
            yield key, sample


def row_of(key: str, sample: Sample, source: Source, shard: SourceShard) -> Found | Bad:
    """One row; ValueError if its JSON is none."""
    meta = json.loads(sample["json"].decode("utf-8", "surrogateescape")) if "json" in sample else {}
    if not isinstance(meta, dict):
        raise ValueError(f"the JSON holds no fields but {meta!r:.40}")
    endings = IMAGE_SUFFIXES if source.image == "image" else (source.image.lower(),)
    images = [sample[ending] for ending in endings if ending in sample]
    if len(images) > 1:
        there = " and ".join(e for e in endings if e in sample)
        return Bad(key, shard.path, Reason.IMAGE_AMBIGUOUS, f"{there}; choose one with `image:`")
    return Found(
        key=meta.get(source.key) if source.key else key,
        source=shard.path,
        image=images[0] if images else None,
        captions=captions_of(sample, meta, source),
        scores={name: meta.get(name) for name in source.scores},
    )


def captions_of(sample: Sample, meta: dict[str, Any], source: Source) -> list[Any]:
    """Of the member or the JSON field that the source names; else of the ``.txt``."""
    if (named := source.caption.lower()) in sample and named != "json":
        return lines(sample[named])
    if "txt" in sample and source.caption == "caption":
        return lines(sample["txt"])
    return listed(first_of(meta, caption_fields(source)))
