"""Embeds an image–caption data set with T5 and CLIP, as a Ray Data job.

One source shard becomes one embedded shard in the pool, whole or not at all, and a row beside it
says that it is done. So a killed job does again only what was in flight, and what an earlier
version or another pipeline has embedded by the same recipe is not done at all: neither a shard
that is in the pool, nor a row that an earlier shard has (:mod:`pipelines.data.row_reuse`). The
node's own result is a version: the list of its shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pipelines.data.formats.shard import SourceShard
from pipelines.data.row_reuse import ReuseIndex
from pipelines.data.rows import Reason, printable
from pipelines.data.shard_pool import complete_shards, pool_path
from pipelines.runs.context import Context, Result
from pipelines.spec.data import Source
from pipelines.steps.embed_stages import STAGES, AllStages, Stage
from pipelines.steps.embed_tally import Tally
from pipelines.steps.embed_work import Job, Work

Record = dict[str, Any]

SHARDS_PER_JOB = 10_000  # shards of one Ray Data job


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    from pipelines.dag.sources import digest_of
    from pipelines.data.sources import list_shards
    from pipelines.store.dataset import Version

    recipe = settings["recipe"]
    made = ctx.manifests.get("encoders")
    source = Source.model_validate(ctx.runtime["source"])
    if "data" in inputs:
        source = Source(path=str(ctx.store.local(inputs["data"])), format="parquet")
    shards = list_shards(source)
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
    tally, safe = Tally(job.pool), set()

    def report() -> None:
        size = {what: tally.totals[what] for what in ("rows", "bytes")}
        ctx.report(done=tally.shards, of=len(shards), unit="shards", **size)

    listing = ctx.store.files(job.pool)
    for record in completed(job, shards, listing):
        tally.add(record)
        safe.add(record["name"])
    report()
    todo = [s for s in shards if s.name not in safe]
    before = Version.latest(ctx.store, ctx.node) if todo else None
    job = replace(job, reuse=ReuseIndex.build(job.store, job.pool, shards, todo, before, listing))
    del listing  # of a million files
    for record in run(job, todo, ctx.runtime["embedding"], ctx.cpus):
        tally.add(record, now=True)
        ctx.save_progress(tally.shards, len(shards), "shards")
        report()
    return assemble(ctx, job, tally)


def completed(
    job: Job, shards: list[SourceShard], listing: Mapping[str, int] | None = None
) -> Iterator[Record]:
    """Facts of the shards that are in the pool."""
    for shard, record in complete_shards(job.store, job.pool, shards, listing):
        yield record | {"name": shard.name, "source": shard.url}


def run(
    job: Job, todo: list[SourceShard], embedding: Mapping[str, Any], cpus: int
) -> Iterator[Record]:
    """The Ray Data job; yields the facts of each shard when it is in the pool.

    A million shards are no one job: what Ray keeps of each of its blocks would fill the driver.
    """
    for at in range(0, len(todo), SHARDS_PER_JOB):
        yield from run_job(job, todo[at : at + SHARDS_PER_JOB], embedding, cpus)


def run_job(
    job: Job, todo: list[SourceShard], embedding: Mapping[str, Any], cpus: int
) -> Iterator[Record]:
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
        yield job.store.read_json(job.path(work.shard, "json"))


def actor_pools(
    embedding: Mapping[str, Any], cpus: int, shards: int
) -> list[tuple[type[Stage], dict[str, Any]]]:
    """The stages' actors, and what each of them needs.

    As the spec says; where it says nothing, every CPU has an actor that does the whole work, as
    without a GPU no stage needs what another does not.
    """
    if not any(embedding[s.name]["actors"] or embedding[s.name]["gpus"] for s in STAGES):
        return [(AllStages, {"actors": min(cpus, shards), "cpus": 1, "gpus": 0})]
    found = [(s, {**embedding[s.name], "actors": embedding[s.name]["actors"] or 1}) for s in STAGES]
    share = cpus / sum(pool["actors"] for _, pool in found)
    return [(stage, {**pool, "cpus": min(1.0, share)}) for stage, pool in found]


def assemble(ctx: Context, job: Job, tally: Tally) -> Result:
    """The version, and what there is to say about it."""
    from pipelines.data import duplicate_keys
    from pipelines.store.dataset import FILE, Version

    stats = tally.stats()
    quarantined, filtered = stats["quarantined"], stats["filtered"]
    if tally.header is None:
        worst = ", ".join(f"{n} × {why}" for why, n in sorted((quarantined | filtered).items()))
        where = f"{job.store.full(job.pool)}/*.json"
        if not worst:
            raise ValueError(f"{job.source.path} holds no row; put image–caption pairs there")
        raise ValueError(
            f"not one row of {job.source.path} is usable ({worst}); see `faults` in {where}"
        )
    header = tally.header
    version = Version.write(ctx.store, ctx.folder, tally.table(), header)
    stats["usable"] = {str(r): int(version.usable(r).sum()) for r in header.resolutions}
    stats["repeated"] = duplicate_keys.find_duplicates(version)
    if twice := stats["repeated"]["rows"]:
        one = stats["repeated"]["examples"][0]
        ctx.report(
            message=f"has {twice:,} rows whose key another shard has too, such as "
            f"{printable(one['key'])} in {one['first']} and {one['again']}; none is dropped"
        )
    if away := quarantined.get(Reason.IMAGE_AWAY):
        ctx.report(
            message=f"lacks {away:,} pictures whose servers were away; they are asked for again "
            "when the data or a setting of the embedding has changed"
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
