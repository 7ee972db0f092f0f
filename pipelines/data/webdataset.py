"""WebDataset: members of a tar that follow each other and share a key are one row."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from typing import Any

from pipelines.data.captions import lines, listed
from pipelines.data.rows import Bad, Reason
from pipelines.data.settings import Source
from pipelines.data.shard import (
    IMAGE_SUFFIXES,
    Findings,
    Found,
    SourceShard,
    caption_fields,
    first_of,
)
from pipelines.data.tar import members

Sample = dict[str, bytes]
"""Ending → content."""


def read(source: Source, shard: SourceShard) -> Findings:
    with shard.place.open(shard.path) as handle:
        for found in samples(handle, source, shard):
            if isinstance(found, Bad):
                yield found
                continue
            key, sample = found
            try:
                yield row_of(key, sample, source, shard)
            except ValueError as error:
                yield Bad(key, shard.path, Reason.METADATA_BROKEN, str(error)[:200])


def samples(handle: Any, source: Source, shard: SourceShard) -> Iterator[tuple[str, Sample] | Bad]:
    """The rows' members. One that is lost leaves its row without it, which is then refused."""
    endings = {*IMAGE_SUFFIXES, "txt", "json", source.image.lower()}
    key, sample = "", Sample()
    for member in members(handle, lambda name: split(name)[1] in endings):
        if member.bad:
            yield Bad(member.name or shard.name, shard.path, member.bad, member.detail)
            continue
        name, ending = split(member.name)
        if name.startswith("/") or ".." in name.split("/"):
            yield Bad(member.name, shard.path, Reason.PATH_OUTSIDE)
            continue
        if member.data is None or not posixpath.basename(name):  # of another kind, or hidden
            continue
        if name != key or ending in sample:
            if sample:
                yield key, sample
            key, sample = name, Sample()
        sample[ending] = member.data
    if sample:
        yield key, sample


def split(name: str) -> tuple[str, str]:
    """``a/0001.seg.PNG`` → ``a/0001``, ``seg.png``: a key has no dot."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, _, ending = base.partition(".")
    return (f"{folder}/{stem}" if folder or name.startswith("/") else stem), ending.lower()


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
    in_text = "txt" in sample and source.caption == "caption"
    return Found(
        key=meta.get(source.key) if source.key else key,
        source=shard.path,
        image=images[0] if images else None,
        captions=lines(sample["txt"])
        if in_text
        else listed(first_of(meta, caption_fields(source))),
        scores={name: meta.get(name) for name in source.scores},
    )
