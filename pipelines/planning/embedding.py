"""What an embed node would do and cost, before it runs: for the plan.

Reads listings, what the pool says of its shards, some Parquet footers and the version made last;
and of changed files on disk the rows, to tell those that the job will copy. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipelines.dag.plan import Plan, Verdict, folder_of
from pipelines.data.filters import sift
from pipelines.data.formats.shard import SourceShard, is_image
from pipelines.data.pool import pool_of, whole_in
from pipelines.data.rows import Row
from pipelines.data.sources import read_shard
from pipelines.formatting import gigabytes
from pipelines.planning import encoder_cost
from pipelines.spec.cluster import EMBEDDING
from pipelines.spec.data import Source
from pipelines.spec.gpus import ASSUMED
from pipelines.spec.pipeline import Embedding, Encoders, Spec
from pipelines.store.artifacts import Store
from pipelines.store.dataset import FILE, Version

if TYPE_CHECKING:
    from pipelines.data.earlier import Earlier

READ_BYTES = 2**31
"""Of files whose rows are compared with earlier ones; they have just been read to be hashed."""

NAMED = ("t5", "clip")
"""Encoders that every spec has; others are called as the spec calls them."""

LOCAL_FOOTERS, REMOTE_FOOTERS = 256, 16
"""As many are read as cost a second or so; the rest is reckoned from their bytes."""


def ahead(plan: Plan, store: Store, sources: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Embed node that must run on the user's own data → what it will do and cost.

    Args:
        sources: as :func:`pipelines.dag.sources.identify_all` found them.
    """
    found = {}
    for name, verdict in plan.verdicts.items():
        node = verdict.node
        if node.kind == "embed" and not verdict.cached and node.name in sources:
            encoders = node.inputs.get("encoders")
            made = plan.verdicts[encoders].fingerprint if encoders else None
            if pairs := sources[node.name].get("pairs"):
                found[name] = _assumed(plan.spec, node.settings["recipe"], pairs)
                continue
            shards = sources[node.name]["listed"]
            found[name] = _work(plan, store, verdict, shards, made)
    return found


def _work(
    plan: Plan, store: Store, verdict: Verdict, shards: list[SourceShard], made: str | None
) -> dict[str, Any]:
    recipe = verdict.node.settings["recipe"]
    pool = pool_of(recipe, made)
    there = store.files(pool)
    todo = _to_embed(store, pool, shards, there)
    last = _last(store, verdict)
    before = last.get("shards", {})
    current = {s.name for s in shards}
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
    from pipelines.data.earlier import Earlier

    encoders = plan.spec.encoders
    kept = last["rows"] / last["read"] if last.get("read") else 1.0
    earlier = Earlier.of(store, pool, shards, todo, Version.latest(store, verdict.node.id), there)
    compared = _compared(plan, verdict, store, earlier, todo)
    rest = [s for s in todo if s.name not in compared]
    encode, copied = (float(sum(found[i] for found in compared.values())) for i in (0, 1))
    how = "compared with those embedded before"
    if rest:
        read, how = _pairs(rest, last)
        held = max(0.0, min(read, len(earlier.heads) - copied))
        encode, copied = encode + read - held, copied + held
    elif compared:
        kept = 1.0
    cost_ = _cost(encode, kept, last, recipe, encoders, _embedding(plan.spec))
    if (size := cost_["bytes_a_pair"]) and copied:
        cost_["bytes"] = round(size * (encode + copied) * kept)
    exact = not rest or not copied
    return work | cost_ | {"copied": round(copied), "at_least": not exact, "pairs_by": how}


def _compared(
    plan: Plan, verdict: Verdict, store: Store, earlier: Earlier, todo: list[SourceShard]
) -> dict[str, tuple[int, int]]:
    """Shard → how many of its pairs are to be encoded, and how many copied, as the job will find.

    Of shards that have nothing to be copied from, or would cost too much to be read, nothing.
    """
    if not earlier.paths and not earlier.named:
        return {}
    from pipelines.data.earlier import Copier, content_of, picture_id

    source: Source = getattr(plan.spec.data, verdict.node.name)
    filters = source.filters.for_sides(verdict.node.settings["recipe"]["resolutions"])
    found, left = {}, READ_BYTES
    for shard in todo:
        left -= shard.bytes
        if left < 0 or not shard.place.is_local or not _has_pictures(source, shard):
            continue
        copier, encode, copy = Copier(store, earlier, shard.name), 0, 0
        for row in read_shard(source, shard):
            for wanted in sift(row, filters) if isinstance(row, Row) else ():
                if isinstance(wanted, Row):
                    picture = picture_id(wanted.image)
                    known = [copier.find(content_of(picture, text)) for text in wanted.captions]
                    encode += known.count(None)
                    copy += len(known) - known.count(None)
        found[shard.name] = (encode, copy)
    return found


def _has_pictures(source: Source, shard: SourceShard) -> bool:
    """Whether a shard's pictures are in its files; a Parquet file may name some on the web."""
    if not _is_parquet(shard):
        return True
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with shard.place.open(shard.path) as file:
            kind = pq.read_schema(file).field(source.image).type
    except (pa.ArrowException, OSError, KeyError):
        return False
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_parquet(shard: SourceShard) -> bool:
    return shard.path.lower().endswith((".parquet", ".pq"))


def _embedding(spec: Spec) -> Embedding:
    """Counted in the GPUs of the cluster's group, where the spec names one."""
    if spec.cluster is None or (group := spec.cluster.group_of(EMBEDDING)) is None:
        return spec.embedding
    return spec.embedding.model_copy(update={"gpu": spec.cluster.groups[group].gpu})


def _assumed(spec: Spec, recipe: Mapping[str, Any], pairs: int) -> dict[str, Any]:
    """Of data that nobody looked at, all new."""
    work = _cost(pairs, 1.0, {}, recipe, spec.encoders, _embedding(spec))
    return {"to_embed": None, **work, "pairs_by": "assumed"}


def _to_embed(
    store: Store, pool: str, shards: list[SourceShard], there: Mapping[str, int]
) -> list[SourceShard]:
    """Those that the pool has not, by the same rule as the job's."""
    whole = {shard.name for shard, _ in whole_in(store, pool, shards, there)}
    return [s for s in shards if s.name not in whole]


def _last(store: Store, verdict: Verdict) -> dict[str, Any]:
    """What the version made last of this name teaches; empty if there is none."""
    pointer = store.read_json(f"nodes/{verdict.node.id}.latest.json")
    folder = folder_of(verdict.node, pointer["fingerprint"]) if pointer else ""
    stats = store.read_json(f"{folder}/stats.json") if pointer else None
    if stats is None or store.read(f"{folder}/{FILE}") is None:
        return {}
    try:
        version = Version.open(store, folder)
    except ValueError:  # of an older format
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


def _pairs(todo: list[SourceShard], last: Mapping[str, Any]) -> tuple[float, str]:
    """How many pairs some shards hold, and how that is known."""
    size = sum(s.bytes for s in todo)
    if pictures := sum(is_image(path) for s in todo for path in s.files):
        return pictures, "pictures listed"
    if _is_parquet(todo[0]):
        most = LOCAL_FOOTERS if todo[0].place.is_local else REMOTE_FOOTERS
        asked = todo[:: -(-len(todo) // most)]
        with ThreadPoolExecutor(16) as pool:
            read = [(s, n) for s, n in zip(asked, pool.map(_footer, asked)) if n is not None]
        if bytes_read := sum(s.bytes for s, _ in read):
            rows = sum(n for _, n in read)
            if len(read) == len(todo):
                return rows, "from the Parquet footers"
            return rows * size / bytes_read, f"from {len(read)} of {len(todo):,} Parquet footers"
    if last.get("source_bytes") and last.get("read"):
        mean = last["source_bytes"] / last["read"]
        return size / mean, f"at {mean / 1e3:,.1f} kB a pair, as before"
    mean = ASSUMED.pair_bytes
    return size / mean, f"at {mean / 1e3:,.0f} kB a pair, assumed"


def _footer(shard: SourceShard) -> int | None:
    """Rows of a Parquet file; None if it is damaged, which embedding will say."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with shard.place.open(shard.path) as file:
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
    """Bytes and GPU-hours; None for what an encoder of unknown size makes unknown.

    Of encoders that the pipeline makes, nothing is known but the further ones beside them.
    """
    assumed = replace(ASSUMED, gpu=embedding.gpu, utilisation=embedding.utilisation)
    supposed = dict.fromkeys(["t5", *encoders.more], assumed.t5_tokens)
    tokens = supposed | {"clip_text": assumed.clip_tokens} | (last.get("tokens") or {})
    t5 = None if encoders.make else encoder_cost.t5_size(encoders.t5)
    clip = None if encoders.make else encoder_cost.clip_size(encoders.clip)
    texts = {
        name: encoder_cost.t5_size(given.model, given.dim) for name, given in encoders.more.items()
    }
    rows = read * kept
    a_pair: float | None = None
    if last and last["recipe"] == {k: v for k, v in recipe.items() if k != "read"}:
        a_pair = last["bytes"] / last["rows"]
    elif t5 and clip:
        packing = recipe["packing"]
        told = encoder_cost.caption_bytes(t5.width, clip, tokens, packing["precision"])
        for name, given in encoders.more.items():
            kept_tokens = tokens[name] if given.kind == "sequence" else None
            told[name] = encoder_cost.text_bytes(given.dim, kept_tokens, packing["precision"])
        pictures = (recipe["resolutions"], recipe["full"], packing["pictures"])
        a_pair = sum(told.values()) + encoder_cost.picture_bytes(*pictures, assumed)
    captions = max(read, rows)  # a picture may have several
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
        "bytes_a_pair": a_pair and round(a_pair),
        "bytes": a_pair and round(a_pair * rows),
        "flops": flops,
        "gpu_hours": hours,
        "gpu": assumed.gpu,
        "utilisation": assumed.utilisation,
        "t5_dtype": None if encoders.make else encoders.t5_dtype,
    }


def lines(work: Mapping[str, Any]) -> list[str]:
    """The same in words, a line for the shards, the rows and the GPUs."""
    if work["to_embed"] is None:
        return _words(work)
    few = f"{work['to_embed']:,} of {work['source_shards']:,} shards to embed"
    again = "whose files are lost or lack pictures" if work["lost"] else "by a new recipe"
    told = [
        f"{work[what]:,} {words}"
        for what, words in (("new", "new"), ("changed", "changed"), ("again", again))
        if work[what]
    ]
    if not work["to_embed"]:
        told = ["all are in the pool"]
    gone = f"; {work['removed']:,} removed" if work["removed"] else ""
    if not work["compared"] and work["to_embed"]:
        told = []  # all are new where nothing was before
    found = [(f"{few}: {', '.join(told)}" if told else few) + gone]
    return [*found, *_words(work)] if work["to_embed"] else found


def _words(work: Mapping[str, Any]) -> list[str]:
    tokens = work["tokens"]
    source = "as before" if work["measured"] else "assumed"
    size = work["bytes"]
    space = f"about {gigabytes(size)} of shards" if size else "shards of unknown size"
    share = f", {work['kept'] * 100:.1f} % of them kept as before" if work["kept"] < 1 else ""
    found = [f"{work['pairs']:,} pairs ({work['pairs_by']}{share})"]
    if work.get("copied"):
        least = "at least " if work["at_least"] else ""
        found = [
            f"{least}{work['pairs']:,} pairs to encode, {work['copied']:,} to copy "
            f"({work['pairs_by']}{share})"
        ]
    found.append(
        f"{space}, at {tokens['t5']:.0f} T5 and {tokens['clip_text']:.0f} CLIP tokens a "
        f"caption ({source})"
    )
    names = {"t5": "T5", "clip": "CLIP"} | {n: n for n in work["gpu_hours"] if n not in NAMED}
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
        found.append(f"no GPU-hours for {' and '.join(unknown)}: of a size not known here")
    return found


def _hours(hours: float) -> str:
    if hours < 0.1:
        minutes = hours * 60
        return f"about {minutes:.1f} GPU-minutes" if minutes >= 0.1 else "less than 0.1 GPU-minutes"
    return f"about {hours:,.1f} GPU-hours" if hours < 100 else f"about {hours:,.0f} GPU-hours"
