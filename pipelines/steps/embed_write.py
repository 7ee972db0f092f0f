"""Write an embedded shard from encoded and copied rows: the work of the last stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ediffi_core.embeddings import EmbeddingSpec
from ediffi_core.encoders import embedding_specs
from pipelines.data.duplicate_keys import hash_keys, keys_path
from pipelines.data.row_reuse import RowsSidecar
from pipelines.data.rows import Reason
from pipelines.steps.embed_work import Job, Work
from pipelines.store.artifacts import sha256
from pipelines.store.shards import Header, Packing, pixels_column, write

FILTERED = (
    Reason.IMAGE_SMALL,
    Reason.CAPTION_LENGTH,
    Reason.SCORE_MISSING,
    Reason.SCORE_BOUNDS,
    Reason.CLIP_SCORE,
)
"""Reasons for which good rows are unwanted: these are only counted. Rows with any other reason are
quarantined: counted and listed one by one."""


def write_shard(job: Job, work: Work) -> None:
    """Write the shard, the two files beside it, and finally the record that says it is complete.

    Raises:
        ValueError: Rows to copy were embedded by other weights of the same name.
    """
    header, path = header_of(job, work), job.path(work.shard, "parquet")
    row = job.path(work.shard, "json")
    reasons = Counter(str(b.reason) for b in work.rejected)
    away = reasons[Reason.IMAGE_AWAY]
    record: dict[str, Any] = {"rows": 0, "usable": dict.fromkeys(job.resolutions, 0)}
    contents = RowsSidecar(contents=[], scores=[], sums={}, sha256="")
    if header is not None:
        pairs = sorted(_pairs(job, work), key=lambda pair: pair["at"])
        columns = columns_of(pairs, header)
        written = write(columns, header)
        if away:  # versions refer to this file, so a later, fuller shard gets another name
            path = f"{path.removesuffix('.parquet')}.{sha256(written.data)[:8]}.parquet"
        job.store.write(path, written.data)
        job.store.write(keys_path(path), hash_keys(columns["key"]))
        record = written.record | {
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
        contents = RowsSidecar(
            contents=[pairs[i]["content"] for i in written.order],
            scores=[pairs[i]["scores"]["clip"] for i in written.order],
            sums=written.sums,
            sha256=record["sha256"],
        )
    if header is not None or work.dropped:
        contents.with_dropped(work.dropped).write(job.store, path)
    record |= {
        "name": work.shard.name,
        "source": work.shard.url,
        "source_identity": work.shard.identity,
        "read": work.read,
        "encoded": work.encoded,
        "copied": len(work.copied),
        "filtered": {r: n for r, n in sorted(reasons.items()) if r in FILTERED},
        "quarantined": {r: n for r, n in sorted(reasons.items()) if r not in FILTERED},
        "faults": [asdict(b) for b in work.rejected if b.reason not in FILTERED],
        "batches": dict(sorted(work.batches.items())),
        "seconds": {stage: round(s, 3) for stage, s in work.seconds.items()},
    }
    if away:
        copied_headers = job.store.read_json(row) or {}
        record |= {"away": away, "asked": copied_headers.get("asked", 0) + 1}
        if header is not None:
            job.store.write_json(f"{path.removesuffix('.parquet')}.json", record)
    job.store.write_json(row, record)


def columns_of(pairs: Sequence[Mapping[str, Any]], header: Header) -> dict[str, list[Any]]:
    """The columns that :func:`pipelines.store.shards.write` takes."""
    columns: dict[str, list[Any]] = {
        name: [pair[name] for pair in pairs] for name in ("key", "source", "caption")
    }
    for score in sorted({s for pair in pairs for s in pair["scores"]}):
        columns[f"score_{score}"] = [pair["scores"].get(score) for pair in pairs]
    for name in (*map(pixels_column, header.resolutions), *(e.name for e in header.embeddings)):
        columns[name] = [pair["values"][name] for pair in pairs]
    return columns


def _pairs(job: Job, work: Work) -> Iterator[dict[str, Any]]:
    """All pairs of a shard, copied and encoded, with pictures and embeddings in ``values``."""
    yield from work.copied
    for i, row in enumerate(work.rows):
        picture = work.pictures[row["picture"]]
        values = {pixels_column(side): picture[side] for side in job.resolutions}
        values |= {name: of[i] for name, of in work.embeddings.items()}
        yield {**row, "values": values}


def header_of(job: Job, work: Work) -> Header | None:
    """The shard's header, the same for all shards of the job; None if the shard has no rows.

    Raises:
        ValueError: A shard that rows are copied from has other encoders.
    """
    copied_headers = {id(h): h for h in (pair["values"]["header"] for pair in work.copied)}.values()
    if work.rows:
        found, more = work.embeddings, job.encoders.get("more", {})
        embeddings = (
            *embedding_specs(
                found["t5"][0].shape[1], found["clip_text"][0].shape[1], len(found["clip_image"][0])
            ),
            *(EmbeddingSpec(name=n, dim=m["dim"], kind=m["kind"]) for n, m in more.items()),
        )
    elif copied_headers:
        embeddings = next(iter(copied_headers)).embeddings
    else:
        return None
    for header in copied_headers:
        for name, new in work.encoders.items():
            old = header.encoders[name]
            if any(old[what] != new[what] for what in ("sha256", "dtype")):
                raise ValueError(
                    f"{work.shard.url} has rows that were embedded by {name} {old['name']} with "
                    f"sha256 {old['sha256'][:12]} ({old['dtype']}), which now has sha256 "
                    f"{new['sha256'][:12]} ({new['dtype']}); use the old weights, or remove "
                    f"{job.store.full(job.pool)} to embed all again"
                )
    return Header(
        resolutions=job.resolutions,
        embeddings=embeddings,
        encoders=work.encoders,
        packing=Packing(**job.packing, full=job.full),
    )
