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

import hashlib
from bisect import bisect_right
from collections.abc import Iterable

from pipelines.data import caption_file
from pipelines.data.caption_file import Line, table
from pipelines.data.captions import lines
from pipelines.data.files import File, Folder
from pipelines.data.formats.shard import (
    Findings,
    Found,
    SourceShard,
    is_image,
    is_text,
    name_of,
    stem,
    utf8,
)
from pipelines.data.identity import identify_each
from pipelines.data.rows import Bad, BadRow, Reason
from pipelines.spec.data import Source

SHARD_PICTURES = 1024
"""On average; a shard has from half to twice as many, the last one fewer."""


def shards(source: Source, home: Folder, *, coco: bool = False) -> list[SourceShard]:
    """The runs of pictures.

    Args:
        coco: whether the caption file is one of COCO's.

    Raises:
        ValueError: There are two caption files, or the one captions no picture that is there.
    """
    place, files = home.place, home.files
    path = caption_file.find(place, files, coco=coco)
    if not path and (source.key or source.scores):
        raise ValueError(
            f"{place.folder} has no captions.jsonl or .csv for `key:` and `scores:` to be in; "
            "add one, or remove the two"
        )
    pictures = [f for f in files if is_image(f.path)]
    names, beside = {f.path for f in pictures}, ""
    texts = [] if path else [f for f in files if is_text(f.path)]
    if path and coco:
        beside = caption_file.pictures_folder(source, place, path, names)
    starts = _starts(stem(f.path) for f in pictures)
    content: list[list[File]] = [[] for _ in starts]
    for file in [*pictures, *texts]:
        content[_run_of(stem(file.path), starts)].append(file)
    said = [hashlib.sha256() for _ in starts]
    spoken, used, first = set(), False, None
    for line in table(source, place, path, beside) if path else ():
        run = _run_of(line.belongs_to, starts)
        said[run].update(utf8(f"{line}\n"))
        spoken.add(run)
        if not used:
            used = bool((line.file in names or "://" in line.file) and any(line.captions))
            first = first if first and not first.bad else line
    if path and not used:
        raise caption_file.unused(place, path, first)
    runs = [i for i, some in enumerate(content) if some or i in spoken]
    identities = identify_each(place, [content[i] for i in runs])
    return [
        SourceShard(
            name="pictures-" + name_of(home.prefix + starts[i]).lstrip("-"),
            folder=place.folder,
            path=path or "",
            beside=beside,
            identity=identity + (f"+{said[i].hexdigest()}" if path else ""),
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
    digest = hashlib.sha256(utf8(text)).digest()
    return int.from_bytes(digest[:8], "big")


def _mixed(path: str) -> tuple[int, str]:
    """Sorts pictures so that neighbours are of no kind; those of one stem stay together."""
    return _hash(stem(path)), path


def read(source: Source, shard: SourceShard) -> Findings:
    return _captioned_by_table(source, shard) if shard.path else _captioned_by_text(source, shard)


def _captioned_by_text(source: Source, shard: SourceShard) -> Findings:
    texts = {stem(path): path for path in shard.files if is_text(path)}
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
    for line in table(source, shard.place, shard.path, shard.beside):
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
        elif path not in there and "://" not in path:
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
