"""Estimate what an embed node will do and cost, for the plan.

Reads listings, the pool's own records of its shards, some Parquet footers and the latest version of
the data set. Of changed files on disk it also reads the rows, to count the pairs that the job will
copy instead of encoding them. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipelines.dag.plan import Plan, Verdict, folder_of
from pipelines.data.filters import apply_filters
from pipelines.data.formats.shard import SourceShard, is_image
from pipelines.data.rows import Row
from pipelines.data.shard_pool import complete_shards, pool_path
from pipelines.data.sources import read_shard
from pipelines.formatting import byte_size
from pipelines.planning import encoder_cost
from pipelines.spec.cluster import EMBEDDING
from pipelines.spec.data import Source
from pipelines.spec.embedding import Embedding
from pipelines.spec.encoders import Encoders
from pipelines.spec.gpus import ASSUMED
from pipelines.spec.pipeline import Spec
from pipelines.store.artifacts import Store
from pipelines.store.dataset import FILE, Version

if TYPE_CHECKING:
    from pipelines.data.row_reuse import ReuseIndex

MAX_READ_BYTES = 2**31
"""Bytes of changed files whose rows are compared with earlier ones; these files have just been read
to be hashed."""

BUILT_IN = ("t5", "clip")
"""Encoders that every spec has; further ones have the names the spec gives them."""

MAX_LOCAL_FOOTERS, MAX_REMOTE_FOOTERS = 256, 16
"""Parquet footers to read, which takes about a second; further rows are estimated from bytes."""


def estimate(plan: Plan, store: Store, sources: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Embed node that must run on the user's data → its work: shards, pairs, bytes, GPU-hours.

    Args:
        sources: the data sets, from :func:`pipelines.dag.sources.identify_all`.

    Returns:
        JSON values for ``ediffi plan --json``; :func:`describe` puts them in words.
    """
    found = {}
    for name, verdict in plan.verdicts.items():
        node = verdict.node
        if node.kind == "embed" and not verdict.cached and node.name in sources:
            encoders = node.inputs.get("encoders")
            made = plan.verdicts[encoders].fingerprint if encoders else None
            if pairs := sources[node.name].get("pairs"):
                found[name] = _work_assumed(plan.spec, node.settings["recipe"], pairs)
                continue
            shards = sources[node.name]["listed"]
            found[name] = _work(plan, store, verdict, shards, made)
    return found


def _work(
    plan: Plan, store: Store, verdict: Verdict, shards: list[SourceShard], made: str | None
) -> dict[str, Any]:
    recipe = verdict.node.settings["recipe"]
    pool = pool_path(recipe, made)
    listing = store.files(pool)
    todo = _to_embed(store, pool, shards, listing)
    last = _last_version(store, verdict)
    before, current = last.get("shards", {}), {s.name for s in shards}
    if before.keys().isdisjoint(current):  # another pipeline's data set
        before = {}
    work: dict[str, Any] = {
        "pool": pool,
        "source_shards": len(shards),
        "to_embed": len(todo),
        "compared": bool(before),
        "new": sum(s.name not in before for s in todo),
        "changed": sum(before.get(s.name, s.identity) != s.identity for s in todo),
        "again": sum(before.get(s.name) == s.identity for s in todo),
        "lost": last.get("pool") == pool,
        "removed": len(before.keys() - current),
    }
    if not todo:
        return work
    from pipelines.data.row_reuse import ReuseIndex

    encoders = plan.spec.encoders
    kept = last["rows"] / last["read"] if last.get("read") else 1.0
    reuse = ReuseIndex.build(
        store, pool, shards, todo, Version.latest(store, verdict.node.path), listing
    )
    compared = _compare_pairs(plan, verdict, store, reuse, todo)
    rest = [s for s in todo if s.name not in compared]
    encode, copied = (float(sum(found[i] for found in compared.values())) for i in (0, 1))
    how = "compared with pairs embedded before"
    if rest:
        read, how = _count_pairs(rest, last)
        held = max(0.0, min(read, len(reuse.prefixes) - copied))
        encode, copied = encode + read - held, copied + held
    elif compared:
        kept = 1.0
    cost = _cost(encode, kept, last, recipe, encoders, _embedding_settings(plan.spec))
    if (size := cost["bytes_a_pair"]) and copied:
        cost["bytes"] = round(size * (encode + copied) * kept)
    exact = not rest or not copied
    return work | cost | {"copied": round(copied), "at_least": not exact, "pairs_by": how}


def _compare_pairs(
    plan: Plan, verdict: Verdict, store: Store, reuse: ReuseIndex, todo: list[SourceShard]
) -> dict[str, tuple[int, int]]:
    """Shard → (pairs to encode, pairs to copy), found as the job will find them.

    Shards that are too large to read, or not on disk, are left out; so are all shards if there is
    nothing to copy from.
    """
    if not reuse.paths and not reuse.by_name:
        return {}
    from pipelines.data.row_reuse import RowCopier, content_hash, image_hash

    source: Source = getattr(plan.spec.data, verdict.node.name)
    filters = source.filters.for_sides(verdict.node.settings["recipe"]["resolutions"])
    found, left = {}, MAX_READ_BYTES
    for shard in todo:
        left -= shard.bytes
        if left < 0 or not shard.location.is_local or not _has_pictures(source, shard):
            continue
        copier, encode, copy = RowCopier(store, reuse, shard.name), 0, 0
        for row in read_shard(source, shard):
            for wanted in apply_filters(row, filters) if isinstance(row, Row) else ():
                if isinstance(wanted, Row):
                    picture = image_hash(wanted.image)
                    known = [copier.find(content_hash(picture, text)) for text in wanted.captions]
                    encode += known.count(None)
                    copy += len(known) - known.count(None)
        found[shard.name] = (encode, copy)
    return found


def _has_pictures(source: Source, shard: SourceShard) -> bool:
    """Whether a shard's images are in its files; a Parquet file may hold addresses instead."""
    if not _is_parquet(shard):
        return True
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with shard.location.open(shard.path) as file:
            kind = pq.read_schema(file).field(source.image).type
    except (pa.ArrowException, OSError, KeyError):
        return False
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_parquet(shard: SourceShard) -> bool:
    return shard.path.lower().endswith((".parquet", ".pq"))


def _embedding_settings(spec: Spec) -> Embedding:
    """The spec's ``embedding:``, with the GPU of the cluster's group if there is one."""
    if spec.cluster is None or (group := spec.cluster.group_of(EMBEDDING)) is None:
        return spec.embedding
    return spec.embedding.model_copy(update={"gpu": spec.cluster.groups[group].gpu})


def _work_assumed(spec: Spec, recipe: Mapping[str, Any], pairs: int) -> dict[str, Any]:
    """The work for data that is not looked at (``--assume``): all pairs are new."""
    work = _cost(pairs, 1.0, {}, recipe, spec.encoders, _embedding_settings(spec))
    return {"to_embed": None, **work, "pairs_by": "assumed"}


def _to_embed(
    store: Store, pool: str, shards: list[SourceShard], listing: Mapping[str, int]
) -> list[SourceShard]:
    """Shards that the pool lacks, by the same rule as in the job."""
    complete = {shard.name for shard, _ in complete_shards(store, pool, shards, listing)}
    return [s for s in shards if s.name not in complete]


def _last_version(store: Store, verdict: Verdict) -> dict[str, Any]:
    """Statistics of the latest version of this data set; empty if there is none."""
    pointer = store.read_json(f"nodes/{verdict.node.path}.latest.json")
    folder = folder_of(verdict.node, pointer["fingerprint"]) if pointer else ""
    stats = store.read_json(f"{folder}/stats.json") if pointer else None
    if stats is None or store.read(f"{folder}/{FILE}") is None:
        return {}
    try:
        version = Version.open(store, folder)
    except ValueError:  # written in an older format
        return {}
    return {
        "shards": dict(
            zip(
                version.table["name"].to_pylist(),
                version.table["source_identity"].to_pylist(),
                strict=True,
            )
        ),
        "pool": stats["pool"],
        "read": stats["read"],
        "rows": stats["rows"],
        "bytes": stats["bytes"],
        "source_bytes": (pointer["settings"].get("source") or {}).get("bytes"),
        "tokens": {
            name: sum(int(length) * n for length, n in counts.items()) / stats["rows"]
            for name, counts in stats["tokens"].items()
        },
        "recipe": {k: v for k, v in pointer["settings"]["recipe"].items() if k != "read"},
    }


def _count_pairs(todo: list[SourceShard], last: Mapping[str, Any]) -> tuple[float, str]:
    """Number of pairs in some shards, and how it was found."""
    size = sum(s.bytes for s in todo)
    if pictures := sum(is_image(path) for s in todo for path in s.files):
        return pictures, "images listed"
    if _is_parquet(todo[0]):
        most = MAX_LOCAL_FOOTERS if todo[0].location.is_local else MAX_REMOTE_FOOTERS
        sample = todo[:: -(-len(todo) // most)]
        with ThreadPoolExecutor(16) as pool:
            read = [(s, n) for s, n in zip(sample, pool.map(_footer_rows, sample)) if n is not None]
        if bytes_read := sum(s.bytes for s, _ in read):
            rows = sum(n for _, n in read)
            if len(read) == len(todo):
                return rows, "from Parquet footers"
            return rows * size / bytes_read, f"from {len(read)} of {len(todo):,} Parquet footers"
    if last.get("source_bytes") and last.get("read"):
        mean = last["source_bytes"] / last["read"]
        return size / mean, f"at {mean / 1e3:,.1f} kB per pair, as before"
    mean = ASSUMED.pair_bytes
    return size / mean, f"assumed at {mean / 1e3:,.0f} kB per pair"


def _footer_rows(shard: SourceShard) -> int | None:
    """Rows of a Parquet file; None if it is damaged, which the embed job will report."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with shard.location.open(shard.path) as file:
            return int(pq.read_metadata(file).num_rows)
    except (pa.ArrowException, OSError):
        return None


def _cost(
    read: float,
    kept: float,
    last: Mapping[str, Any],
    recipe: Mapping[str, Any],
    encoders: Encoders,
    embedding: Embedding,
) -> dict[str, Any]:
    """Bytes, FLOPs and GPU-hours; None where they depend on an encoder of unknown size.

    The size of encoders that the pipeline itself makes is unknown, too.

    Args:
        read: pairs to read.
        kept: fraction of them that passes the filters.
        last: from :func:`_last_version`.
    """
    assumed = replace(ASSUMED, gpu=embedding.gpu, utilisation=embedding.utilisation)
    defaults = dict.fromkeys(["t5", *encoders.more], assumed.t5_tokens)
    tokens = defaults | {"clip_text": assumed.clip_tokens} | (last.get("tokens") or {})
    t5 = None if encoders.make else encoder_cost.t5_size(encoders.t5)
    clip = None if encoders.make else encoder_cost.clip_size(encoders.clip)
    texts = {
        name: encoder_cost.t5_size(given.model, given.dim) for name, given in encoders.more.items()
    }
    rows = read * kept
    bytes_per_pair: float | None = None
    if last and last["recipe"] == {k: v for k, v in recipe.items() if k != "read"}:
        bytes_per_pair = last["bytes"] / last["rows"]
    elif t5 and clip:
        packing = recipe["packing"]
        sizes_of = encoder_cost.caption_bytes(t5.width, clip, tokens, packing["precision"])
        for name, given in encoders.more.items():
            kept_tokens = tokens[name] if given.kind == "sequence" else None
            sizes_of[name] = encoder_cost.text_bytes(given.dim, kept_tokens, packing["precision"])
        pictures = (recipe["resolutions"], recipe["full"], packing["pictures"])
        bytes_per_pair = sum(sizes_of.values()) + encoder_cost.picture_bytes(*pictures, assumed)
    captions = max(read, rows)  # an image may have several
    sizes = {"t5": t5, **texts}
    flops: dict[str, float | None] = {
        name: encoder_cost.t5_flops(size, captions, tokens[name]) if size else None
        for name, size in sizes.items()
    }
    flops["clip"] = encoder_cost.clip_flops(clip, captions, tokens["clip_text"]) if clip else None
    dtypes = {"t5": encoders.t5_dtype}
    hours = {
        name: None if n is None else encoder_cost.gpu_hours(n, dtypes.get(name, "float32"), assumed)
        for name, n in flops.items()
    }
    return {
        "pairs": round(read),
        "kept": kept,
        "tokens": {name: round(n, 2) for name, n in tokens.items()},
        "measured": bool(last),
        "bytes_a_pair": bytes_per_pair and round(bytes_per_pair),
        "bytes": bytes_per_pair and round(bytes_per_pair * rows),
        "flops": flops,
        "gpu_hours": hours,
        "gpu": assumed.gpu,
        "utilisation": assumed.utilisation,
        "t5_dtype": None if encoders.make else encoders.t5_dtype,
    }


def describe(work: Mapping[str, Any]) -> list[str]:
    """Work from :func:`estimate` in words: lines on shards, pairs, bytes and GPU-hours."""
    if work["to_embed"] is None:
        return _describe_cost(work)
    counts = f"{work['to_embed']:,} of {work['source_shards']:,} shards to embed"
    again = "with lost files or missing images" if work["lost"] else "by a new recipe"
    reasons = [
        f"{work[key]:,} {words}"
        for key, words in (("new", "new"), ("changed", "changed"), ("again", again))
        if work[key]
    ]
    if not work["to_embed"]:
        reasons = ["all are in the pool"]
    removed = f"; {work['removed']:,} removed" if work["removed"] else ""
    if not work["compared"] and work["to_embed"]:
        reasons = []  # all shards are new if there was no version before
    found = [(f"{counts}: {', '.join(reasons)}" if reasons else counts) + removed]
    return [*found, *_describe_cost(work)] if work["to_embed"] else found


def _describe_cost(work: Mapping[str, Any]) -> list[str]:
    tokens = work["tokens"]
    source = "as before" if work["measured"] else "assumed"
    size = work["bytes"]
    space = f"about {byte_size(size)} of shards" if size else "shards of unknown size"
    share = f", {work['kept'] * 100:.1f} % pass the filters as before" if work["kept"] < 1 else ""
    found = [f"{work['pairs']:,} pairs ({work['pairs_by']}{share})"]
    if work.get("copied"):
        least = "at least " if work["at_least"] else ""
        found = [
            f"{least}{work['pairs']:,} pairs to encode, {work['copied']:,} to copy "
            f"({work['pairs_by']}{share})"
        ]
    found.append(
        f"{space}, at {tokens['t5']:.0f} T5 and {tokens['clip_text']:.0f} CLIP tokens per "
        f"caption ({source})"
    )
    names = {"t5": "T5", "clip": "CLIP"} | {n: n for n in work["gpu_hours"] if n not in BUILT_IN}
    dtypes = {"t5": work["t5_dtype"]}
    hours = {role: work["gpu_hours"][role] for role in names}
    known = [
        f"{names[role]} {_hours(n)} ({dtypes.get(role, 'float32')})"
        for role, n in hours.items()
        if n is not None
    ]
    if known:
        found.append(
            f"{', '.join(known)} of one {work['gpu']} at {work['utilisation'] * 100:.0f} % "
            "of its peak"
        )
    unknown = [names[role] for role, n in hours.items() if n is None]
    if unknown:
        found.append(f"no estimate of GPU-hours for {' and '.join(unknown)}: size unknown")
    return found


def _hours(hours: float) -> str:
    if hours < 0.1:
        minutes = hours * 60
        return f"about {minutes:.1f} GPU-minutes" if minutes >= 0.1 else "less than 0.1 GPU-minutes"
    return f"about {hours:,.1f} GPU-hours" if hours < 100 else f"about {hours:,.0f} GPU-hours"
