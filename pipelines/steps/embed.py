"""Embeds an image–caption data set with T5 and CLIP, as a Ray Data job.

One source shard becomes one embedded shard in the pool, whole or not at all, and a row beside it
says that it is done. So a killed job does again only what was in flight, and what an earlier
version or another pipeline has embedded by the same recipe is not done at all. The node's own
result is a version: the list of its shards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.data.pool import is_whole, pool_of, shard_path
from pipelines.data.settings import Source
from pipelines.data.shard import SourceShard
from pipelines.steps.context import Context, Result
from pipelines.steps.embed_stages import STAGES, Job, Stage, Whole, Work

Facts = dict[str, Any]

WAVE = 10_000  # shards of one Ray Data job


def step(ctx: Context, settings: dict[str, Any], inputs: dict[str, str]) -> Result:
    from pipelines.data.sources import list_shards
    from pipelines.sources import digest_of

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
        pool=pool_of(recipe, made and made["fingerprint"]),
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
    done = done_before(job, shards)
    todo = [s for s in shards if s.name not in done]
    size = Counter(rows=0, bytes=0)
    for facts in done.values():
        size.update(rows=facts["rows"], bytes=facts.get("bytes", 0))
    ctx.report(done=len(done), of=len(shards), unit="shards", **size)
    for facts in run(job, todo, ctx.runtime["embedding"], ctx.cpus):
        done[facts["name"]] = facts
        size.update(rows=facts["rows"], bytes=facts.get("bytes", 0))
        ctx.save_progress(len(done), len(shards), "shards")
        ctx.report(done=len(done), of=len(shards), unit="shards", **size)
    return assembled(ctx, job, [done[s.name] for s in shards], {s.name for s in todo})


def done_before(job: Job, shards: list[SourceShard]) -> dict[str, Facts]:
    """Facts of the shards that are in the pool. Lists it once."""
    there = job.store.files(job.pool)
    found = {}
    for shard in shards:
        name = job.path(shard, "json").rpartition("/")[2]
        if name not in there:
            continue
        facts = job.store.read_json(f"{job.pool}/{name}")
        if is_whole(facts, lambda path: there.get(path.rpartition("/")[2])):
            found[shard.name] = facts | {"name": shard.name, "source": shard.url}
    return found


def run(
    job: Job, todo: list[SourceShard], embedding: Mapping[str, Any], cpus: int
) -> Iterator[Facts]:
    """The Ray Data job; yields the facts of each shard when it is in the pool.

    A million shards are no one job: what Ray keeps of each of its blocks would fill the driver.
    """
    for at in range(0, len(todo), WAVE):
        yield from wave(job, todo[at : at + WAVE], embedding, cpus)


def wave(
    job: Job, todo: list[SourceShard], embedding: Mapping[str, Any], cpus: int
) -> Iterator[Facts]:
    import pickle

    import ray.data

    items = [{"work": pickle.dumps(Work(shard), 5)} for shard in todo]
    data = ray.data.from_items(items, override_num_blocks=len(items))
    for stage, pool in pools(embedding, cpus, len(todo)):
        data = data.map_batches(
            stage,
            fn_constructor_args=(job,),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=pool["actors"]),
            num_cpus=pool["cpus"],
            num_gpus=pool["gpus"] or None,
        )
    for batch in data.iter_batches(batch_size=1, batch_format="pyarrow"):
        work: Work = pickle.loads(batch.column("work")[0].as_py())
        if work.error:
            raise ValueError(work.error)
        yield job.store.read_json(job.path(work.shard, "json"))


def pools(
    embedding: Mapping[str, Any], cpus: int, shards: int
) -> list[tuple[type[Stage], dict[str, Any]]]:
    """The stages' actors, and what each of them needs.

    As the spec says; where it says nothing, every CPU has an actor that does the whole work, as
    without a GPU no stage needs what another does not.
    """
    if not any(embedding[s.name]["actors"] or embedding[s.name]["gpus"] for s in STAGES):
        return [(Whole, {"actors": min(cpus, shards), "cpus": 1, "gpus": 0})]
    found = [(s, {**embedding[s.name], "actors": embedding[s.name]["actors"] or 1}) for s in STAGES]
    share = cpus / sum(pool["actors"] for _, pool in found)
    return [(stage, {**pool, "cpus": min(1.0, share)}) for stage, pool in found]


def assembled(ctx: Context, job: Job, facts: list[Facts], now: set[str]) -> Result:
    """The version, and what there is to say about it."""
    from pipelines.store.dataset import FILE, Version
    from pipelines.store.shards import Header

    full, empty = [f for f in facts if f["rows"]], [f for f in facts if not f["rows"]]
    quarantined, filtered = (total(facts, of) for of in ("quarantined", "filtered"))
    if not full:
        worst = ", ".join(f"{n} × {why}" for why, n in sorted((quarantined | filtered).items()))
        where = f"{job.store.full(job.pool)}/*.json"
        raise ValueError(
            f"not one row of {job.source.path} is usable ({worst}); see `faults` in {where}"
        )
    header = Header.from_metadata({k.encode(): v.encode() for k, v in full[0]["metadata"].items()})
    for f in full:
        f["usable"] = {side: f["usable"][str(side)] for side in header.resolutions}
    version = Version.write(ctx.store, ctx.folder, [{**f, "seconds": None} for f in full], header)
    stats = {
        "pool": job.pool,
        "empty": [shard_path(job.pool, f["name"], f["source_identity"], "json") for f in empty],
        "read": sum(f["read"] for f in facts),
        "rows": sum(f["rows"] for f in full),
        "usable": {str(r): int(version.usable(r).sum()) for r in header.resolutions},
        "bytes": sum(f["bytes"] for f in full),
        "captions": sum(f["captions"] for f in full),
        "tokens": {
            name: dict(total_by_length([f["tokens"][name] for f in full]))
            for name in full[0]["tokens"]
        },
        "quarantined": quarantined,
        "filtered": filtered,
        "seconds": dict(sum((Counter(f["seconds"]) for f in facts), Counter())),
        "rms_error": {n: max(f["rms_error"][n] for f in full) for n in full[0]["rms_error"]},
    }
    ctx.store.write_json(f"{ctx.folder}/stats.json", stats)
    return Result(
        files=[FILE, "stats.json"],
        metrics={
            "rows": stats["rows"],
            "read": stats["read"],
            "quarantined": sum(quarantined.values()),
            "filtered": sum(filtered.values()),
            "shards": len(facts),
            "gigabytes": stats["bytes"] / 1e9,
            "encoded_now": sum(f["rows"] for f in facts if f["name"] in now),
        },
        info={
            "pool": job.pool,
            "encoders": {k: dict(v) for k, v in header.encoders.items()},
            "quarantined": quarantined,
            "filtered": filtered,
        },
    )


def total(facts: list[Facts], of: str) -> dict[str, int]:
    return dict(sorted(sum((Counter(f[of]) for f in facts), Counter[str]()).items()))


def total_by_length(histograms: list[Mapping[str, int]]) -> list[tuple[int, int]]:
    found: Counter[int] = Counter()
    for histogram in histograms:
        found.update({int(length): n for length, n in histogram.items()})
    return sorted(found.items())
