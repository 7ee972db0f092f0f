"""The last stage's work: an embedded shard, of rows that were encoded and rows that were copied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ediffi_core.embeddings import EmbeddingSpec
from ediffi_core.encoders import embedding_specs
from pipelines.data.duplicate_keys import hashed, keys_path
from pipelines.data.earlier import Contents
from pipelines.data.rows import Reason
from pipelines.steps.embed_work import Job, Work
from pipelines.store.artifacts import sha256
from pipelines.store.shards import Header, Packing, pixels_at, write

FILTERED = (
    Reason.IMAGE_SMALL,
    Reason.CAPTION_LENGTH,
    Reason.SCORE_MISSING,
    Reason.SCORE_BOUNDS,
    Reason.CLIP_SCORE,
)
"""Sound rows that are not wanted: counted. All other reasons are faults: listed one by one."""


def write_shard(job: Job, work: Work) -> None:
    """Writes the shard, its keys' hashes and its rows' contents; then its row in the pool, which
    says that it is done.

    Raises:
        ValueError: What would be copied was embedded by other weights of the same name.
    """
    header, path = header_of(job, work), job.path(work.shard, "parquet")
    row = job.path(work.shard, "json")
    reasons = Counter(str(b.reason) for b in work.bad)
    away = reasons[Reason.IMAGE_AWAY]
    facts: dict[str, Any] = {"rows": 0, "usable": dict.fromkeys(job.resolutions, 0)}
    contents = Contents(contents=[], scores=[], sums={}, sha256="")
    if header is not None:
        pairs = sorted(_pairs(job, work), key=lambda pair: pair["at"])
        columns = columns_of(pairs, header)
        written = write(columns, header)
        if away:  # what takes its place later is another file, as versions name this one
            path = f"{path.removesuffix('.parquet')}.{sha256(written.data)[:8]}.parquet"
        job.store.write(path, written.data)
        job.store.write(keys_path(path), hashed(columns["key"]))
        facts = written.facts | {
            "path": path,
            "bytes": len(written.data),
            "sha256": sha256(written.data),
            "metadata": {k.decode(): v.decode() for k, v in header.to_metadata().items()},
            "captions": len(set(columns["caption"])),
            "tokens": {
                e.name: dict(sorted(Counter(v.shape[0] for v in columns[e.name]).items()))
                for e in header.embeddings
                if e.kind == "sequence"
            },
        }
        contents = Contents(
            contents=[pairs[i]["content"] for i in written.order],
            scores=[pairs[i]["scores"]["clip"] for i in written.order],
            sums=written.sums,
            sha256=facts["sha256"],
        )
    if header is not None or work.dropped:
        contents.with_dropped(work.dropped).write(job.store, path)
    facts |= {
        "name": work.shard.name,
        "source": work.shard.url,
        "source_identity": work.shard.identity,
        "read": work.read,
        "encoded": work.encoded,
        "copied": len(work.copied),
        "filtered": {r: n for r, n in sorted(reasons.items()) if r in FILTERED},
        "quarantined": {r: n for r, n in sorted(reasons.items()) if r not in FILTERED},
        "faults": [asdict(b) for b in work.bad if b.reason not in FILTERED],
        "batches": dict(sorted(work.batches.items())),
        "seconds": {stage: round(s, 3) for stage, s in work.seconds.items()},
    }
    if away:
        before = job.store.read_json(row) or {}
        facts |= {"away": away, "asked": before.get("asked", 0) + 1}
        if header is not None:
            job.store.write_json(f"{path.removesuffix('.parquet')}.json", facts)
    job.store.write_json(row, facts)


def columns_of(pairs: Sequence[Mapping[str, Any]], header: Header) -> dict[str, list[Any]]:
    """What :func:`pipelines.store.shards.write` takes."""
    columns: dict[str, list[Any]] = {
        name: [pair[name] for pair in pairs] for name in ("key", "source", "caption")
    }
    for score in sorted({s for pair in pairs for s in pair["scores"]}):
        columns[f"score_{score}"] = [pair["scores"].get(score) for pair in pairs]
    for name in (*map(pixels_at, header.resolutions), *(e.name for e in header.embeddings)):
        columns[name] = [pair["values"][name] for pair in pairs]
    return columns


def _pairs(job: Job, work: Work) -> Iterator[dict[str, Any]]:
    """All of a shard, each with its pictures and embeddings as ``values``."""
    yield from work.copied
    for i, row in enumerate(work.rows):
        picture = work.pictures[row["picture"]]
        values = {pixels_at(side): picture[side] for side in job.resolutions}
        values |= {name: of[i] for name, of in work.embeddings.items()}
        yield {**row, "values": values}


def header_of(job: Job, work: Work) -> Header | None:
    """What is the same for all shards of the job; None for a shard without rows.

    Raises:
        ValueError: A shard that rows are copied from has other encoders.
    """
    before = {id(h): h for h in (pair["values"]["header"] for pair in work.copied)}.values()
    if work.rows:
        found, more = work.embeddings, job.encoders.get("more", {})
        embeddings = (
            *embedding_specs(
                found["t5"][0].shape[1], found["clip_text"][0].shape[1], len(found["clip_image"][0])
            ),
            *(EmbeddingSpec(name=n, dim=m["dim"], kind=m["kind"]) for n, m in more.items()),
        )
    elif before:
        embeddings = next(iter(before)).embeddings
    else:
        return None
    for header in before:
        for name, now in work.encoders.items():
            then = header.encoders[name]
            if any(then[what] != now[what] for what in ("sha256", "dtype")):
                raise ValueError(
                    f"{work.shard.url} has rows that were embedded by {name} {then['name']} of "
                    f"sha256 {then['sha256'][:12]} ({then['dtype']}), which is now of sha256 "
                    f"{now['sha256'][:12]} ({now['dtype']}); name those weights, or remove "
                    f"{job.store.full(job.pool)} to embed all again"
                )
    return Header(
        resolutions=job.resolutions,
        embeddings=embeddings,
        encoders=work.encoders,
        packing=Packing(**job.packing, full=job.full),
    )
