"""Embed an image–caption data set with T5 and CLIP, as a Ray Data job.

Each source shard becomes one embedded shard in the pool, written atomically; a record beside it
says that it is complete. So a resumed job repeats only the shards that were in flight. Nothing is
embedded twice by the same recipe: neither shards that are already in the pool, nor rows that an
earlier shard has (:mod:`pipelines.data.row_reuse`). The node's own result is a data set version:
the list of its shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pipelines.dag.node import path_of
from pipelines.data.formats.shard import SourceShard
from pipelines.data.listing import kept
from pipelines.data.row_reuse import ReuseIndex
from pipelines.data.rows import Reason
from pipelines.data.shard_pool import complete_shards, pool_path
from pipelines.formatting import printable
from pipelines.runs.context import Context, Result
from pipelines.spec.data import Source
from pipelines.steps.embed_stages import STAGES, AllStages, Stage
from pipelines.steps.embed_tally import Tally
from pipelines.steps.embed_work import Job, Work

Record = dict[str, Any]

SHARDS_PER_JOB = 10_000  # of one Ray Data job


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    """Embed the shards that the pool lacks, and write the version.

    Raises:
        ValueError: The data changed since the plan, or none of its rows is usable.
    """
    from pipelines.dag.sources import digest_of
    from pipelines.data.sources import list_shards
    from pipelines.store.dataset import Version

    recipe = settings["recipe"]
    made = ctx.manifests.get("encoders")
    source = Source.from_settings(ctx.runtime["source"])
    if "data" in inputs:
        source = Source(path=str(ctx.store.local(inputs["data"])), format="parquet")
    begun_with = kept(ctx.store, ctx.folder) if settings["source"] else None
    shards = list_shards(source, begun_with and begun_with["files"])
    if settings["source"] and digest_of(shards) != settings["source"]["identity"]:
        raise ValueError(f"the data at {source.path} changed while the pipeline ran; run it again")
    job = Job(
        store=ctx.store,
        pool=pool_path(recipe, made and made["fingerprint"]),
        source=source,
        resolutions=tuple(recipe["resolutions"]),
        full=tuple(recipe["full"]),
        packing=recipe["packing"],
        encoders_folder=inputs.get("encoders"),
        encoders=ctx.runtime["encoders"],
        threads=1,
        batch_tokens=ctx.runtime["embedding"]["batch_tokens"],
        clip_batch=ctx.runtime["embedding"]["clip_batch"],
    )
    tally, present = Tally(job.pool), set()

    def report() -> None:
        size = {what: tally.totals[what] for what in ("rows", "bytes")}
        ctx.report(done=tally.shards, of=len(shards), unit="shards", **size)

    listing = ctx.store.files(job.pool)
    for record in completed(job, shards, listing):
        tally.add(record)
        present.add(record["name"])
    report()
    todo = [s for s in shards if s.name not in present]
    before = Version.latest(ctx.store, path_of(ctx.node)) if todo else None
    job = replace(job, reuse=ReuseIndex.build(job.store, job.pool, shards, todo, before, listing))
    del listing  # may have a million files
    for record in run(job, todo, ctx.runtime["embedding"], ctx.cpus):
        tally.add(record, now=True)
        ctx.save_progress(tally.shards, len(shards), "shards")
        report()
    return assemble(ctx, job, tally)


def completed(
    job: Job, shards: list[SourceShard], listing: Mapping[str, int] | None = None
) -> Iterator[Record]:
    """Records of the shards that are already in the pool."""
    for shard, record in complete_shards(job.store, job.pool, shards, listing):
        yield record | {"name": shard.name, "source": shard.url}


def run(
    job: Job, todo: list[SourceShard], embedding: Mapping[str, Any], cpus: int
) -> Iterator[Record]:
    """Embed shards with Ray Data; yields each shard's record once it is in the pool.

    A million shards take several jobs: Ray's metadata of so many blocks would fill the driver.

    Args:
        job: What all shards have in common.
        todo: The shards to embed.
        embedding: The spec's ``embedding:`` settings.
        cpus: CPUs that the job may use.

    Raises:
        ValueError: A user's mistake, such as encoders that cannot be loaded.
        StorageError: The storage or the machine failed; what is finished is found next time.
    """
    for at in range(0, len(todo), SHARDS_PER_JOB):
        yield from run_job(job, todo[at : at + SHARDS_PER_JOB], embedding, cpus)


def run_job(
    job: Job, todo: list[SourceShard], embedding: Mapping[str, Any], cpus: int
) -> Iterator[Record]:
    """One Ray Data job of :func:`run`."""
    import pickle

    import ray.data

    items = [{"work": pickle.dumps(Work(shard), 5)} for shard in todo]
    data = ray.data.from_items(items, override_num_blocks=len(items))
    for stage, pool in actor_pools(embedding, cpus, len(todo)):
        data = data.map_batches(
            stage,
            fn_constructor_args=(job,),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=pool["actors"]),
            num_cpus=pool["cpus"],
            num_gpus=pool["gpus"] or None,
            label_selector=embedding["labels"] or None,
        )
    for batch in data.iter_batches(batch_size=1, batch_format="pyarrow"):
        work: Work = pickle.loads(batch.column("work")[0].as_py())
        if work.error:
            raise ValueError(work.error)
        if work.failure:
            raise work.failure
        yield job.store.read_json(job.path(work.shard, "json"))


def actor_pools(
    embedding: Mapping[str, Any], cpus: int, shards: int
) -> list[tuple[type[Stage], dict[str, Any]]]:
    """Actor pool of each stage: number of actors, and CPUs and GPUs per actor.

    These are the spec's settings. Without any, each CPU runs one actor that does all stages:
    without GPUs, all stages need the same resources.
    """
    if not any(embedding[s.name]["actors"] or embedding[s.name]["gpus"] for s in STAGES):
        return [(AllStages, {"actors": min(cpus, shards), "cpus": 1, "gpus": 0})]
    found = [(s, {**embedding[s.name], "actors": embedding[s.name]["actors"] or 1}) for s in STAGES]
    share = cpus / sum(pool["actors"] for _, pool in found)
    return [(stage, {**pool, "cpus": min(1.0, share)}) for stage, pool in found]


def assemble(ctx: Context, job: Job, tally: Tally) -> Result:
    """Write the version and its statistics, and report what users should know.

    Raises:
        ValueError: The data set has no usable row.
    """
    from pipelines.data import duplicate_keys
    from pipelines.store.dataset import FILE, Version

    stats = tally.stats()
    quarantined, filtered = stats["quarantined"], stats["filtered"]
    if tally.header is None:
        reasons = ", ".join(f"{n} × {why}" for why, n in sorted((quarantined | filtered).items()))
        where = f"{job.store.full(job.pool)}/*.json"
        if not reasons:
            raise ValueError(f"{job.source.path} holds no row; put image–caption pairs there")
        raise ValueError(
            f"no row of {job.source.path} is usable ({reasons}); see `faults` in {where}"
        )
    header = tally.header
    version = Version.write(ctx.store, ctx.folder, tally.table(), header)
    stats["usable"] = {str(r): int(version.usable(r).sum()) for r in header.resolutions}
    stats["repeated"] = duplicate_keys.find_duplicates(version)
    if duplicates := stats["repeated"]["rows"]:
        example = stats["repeated"]["examples"][0]
        ctx.report(
            message=f"has {duplicates:,} rows whose key another shard has too, such as "
            f"{printable(example['key'])} in {example['first']} and {example['again']}; "
            "all rows are kept"
        )
    if unreachable := quarantined.get(Reason.IMAGE_AWAY):
        ctx.report(
            message=f"lacks {unreachable:,} pictures whose servers were unreachable; they are "
            "requested again when the data or a setting of the embedding changes"
        )
    ctx.store.write_json(f"{ctx.folder}/stats.json", stats)
    return Result(
        files=[FILE, "stats.json"],
        metrics={
            "rows": stats["rows"],
            "read": stats["read"],
            "quarantined": sum(quarantined.values()),
            "filtered": sum(filtered.values()),
            "repeated": stats["repeated"]["rows"],
            "shards": tally.shards,
            "gigabytes": stats["bytes"] / 1e9,
            "encoded_now": tally.totals["encoded_now"],
            "copied_now": tally.totals["copied_now"],
        },
        info={
            "pool": job.pool,
            "encoders": {k: dict(v) for k, v in header.encoders.items()},
            "quarantined": quarantined,
            "filtered": filtered,
        },
    )
