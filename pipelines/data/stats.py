"""Statistics of a data set version, as numbers and as a page of plain text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.formatting import byte_size
from pipelines.store.artifacts import MANIFEST, Store
from pipelines.store.dataset import Version

BAR_WIDTH = 28  # characters
MAX_BINS = 12
DISPLAY_ORDER = ("decode", "t5", "clip", "clip_text", "clip_text_pooled", "clip_image", "write")
"""Order in which stages and embeddings are listed, as JSON objects do not keep theirs."""

BIN_WIDTHS = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class EmbedResult:
    """The result of an embed node."""

    version: Version
    stats: Mapping[str, Any]
    manifest: Mapping[str, Any]


def find(store: Store, name: str) -> EmbedResult:
    """Open a data set version.

    Args:
        store: The store that holds it.
        name: Name of an embed node, for its latest version; or the version's folder.

    Raises:
        ValueError: There is no such version.
    """
    within = str(Path(name).absolute()) if store.is_local else name
    folder = within if within.startswith(f"{store.root}/") else name
    folder = folder.removeprefix(f"{store.root}/").strip("/")
    if "/" not in name:
        latest = store.read_json(f"nodes/embed/{name}.latest.json")
        if latest is None:
            there = [f for f in store.files("nodes/embed") if f.endswith(".latest.json")]
            known = ", ".join(sorted(f.removesuffix(".latest.json") for f in there))
            raise ValueError(
                f"no data set {name!r} in {store.root}"
                + (f"; there are {known}" if known else "; `ediffi run SPEC` makes one")
                + ", or give --storage"
            )
        folder = f"nodes/embed/{name}-{latest['fingerprint']}"
    version = Version.open(store, folder)
    stats = store.read_json(f"{folder}/stats.json")
    if stats is None:
        raise ValueError(f"{store.full(folder)} has no stats.json; run its embed node again")
    return EmbedResult(version, stats, store.read_json(f"{folder}/{MANIFEST}") or {})


def summarize(embedded: EmbedResult) -> dict[str, Any]:
    """The statistics of a version, as JSON values."""
    version, stats = embedded.version, embedded.stats
    header, sizes = version.header, version.column("bytes")
    widths = {e.name: e.dim for e in header.embeddings}
    tokens = {name: _lengths(counts, widths[name]) for name, counts in _ordered(stats["tokens"])}
    quarantined, filtered = (_shares(stats[k], stats["read"]) for k in ("quarantined", "filtered"))
    return {
        "version": version.folder,
        "finished": embedded.manifest.get("finished"),
        "read": stats["read"],
        "rows": stats["rows"],
        "captions": stats["captions"],
        "repeated": stats.get("repeated"),
        "usable": {str(r): int(version.usable(r).sum()) for r in header.resolutions},
        "bytes": stats["bytes"],
        "bytes_a_row": stats["bytes"] / stats["rows"],
        "fp16_token_bytes_a_row": sum(t["fp16_bytes"] for t in tokens.values()),
        "tokens": tokens,
        "filtered": filtered,
        "quarantined": quarantined,
        "encoders": {role: dict(e) for role, e in _ordered(header.encoders)},
        "precision": {
            e.name: header.packing.precision if e.kind == "sequence" else header.packing.pooled
            for _, e in _ordered({e.name: e for e in header.embeddings})
        },
        "rms_error": dict(stats["rms_error"]),
        "pictures": header.packing.pictures,
        "batches": dict(stats.get("batches", {})),
        "seconds": dict(stats["seconds"]),
        "rows_per_s": {s: stats["read"] / t for s, t in _ordered(stats["seconds"]) if t},
        "shards": {
            "count": len(version),
            "empty": len(stats.get("empty", ())),
            "min_bytes": int(sizes.min()),
            "median_bytes": float(np.median(sizes)),
            "max_bytes": int(sizes.max()),
        },
        "pool": stats["pool"],
    }


def _ordered(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Items in :data:`DISPLAY_ORDER`, then by name."""
    return sorted(
        found.items(),
        key=lambda i: (DISPLAY_ORDER.index(i[0]) if i[0] in DISPLAY_ORDER else 99, i[0]),
    )


def _shares(counts: Mapping[str, int], of: int) -> dict[str, dict[str, float]]:
    """Rows and share of each reason, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda c: (-c[1], c[0]))
    return {reason: {"rows": n, "share": n / of if of else 0.0} for reason, n in ordered}


def _lengths(counts: Mapping[str, int], width: int) -> dict[str, Any]:
    """Statistics of token sequence lengths.

    Args:
        counts: Length in tokens → number of rows.
        width: Values per token.
    """
    found = sorted((int(length), n) for length, n in counts.items())
    lengths = np.array([length for length, _ in found])
    rows = np.array([n for _, n in found])
    below = np.cumsum(rows) / rows.sum()
    mean = float((lengths * rows).sum() / rows.sum())
    return {
        "width": width,
        "mean": mean,
        "median": int(lengths[np.searchsorted(below, 0.5)]),
        "percentile_95": int(lengths[np.searchsorted(below, 0.95)]),
        "longest": int(lengths[-1]),
        "fp16_bytes": mean * width * 2,
        "histogram": {str(length): n for length, n in found},
    }


def quarantined_rows(embedded: EmbedResult, most: int) -> list[dict[str, str]]:
    """The first ``most`` quarantined rows, in the order of the version's shards.

    Raises:
        ValueError: A shard's record is missing.
    """
    found: list[dict[str, str]] = []
    for path in _records_with_quarantined(embedded):
        row = embedded.version.store.read_json(path)
        if row is None:
            raise ValueError(
                f"{embedded.version.store.full(path)} is missing, so the quarantined rows of its "
                "shard cannot be listed; list fewer rows"
            )
        found += row["faults"]
        if len(found) >= most:
            break
    return found[:most]


def _records_with_quarantined(embedded: EmbedResult) -> Iterator[str]:
    """Paths of the records of shards with quarantined rows."""
    table = embedded.version.table
    for path, counts in zip(table["path"], table["quarantined"], strict=True):
        if counts.as_py() != "{}":
            yield path.as_py().removesuffix(".parquet") + ".json"
    yield from embedded.stats.get("empty", ())


def render(found: Mapping[str, Any], quarantined: list[dict[str, str]] | None = None) -> str:
    """The page of plain text.

    Args:
        found: From :func:`summarize`.
        quarantined: From :func:`quarantined_rows`; None omits the list.
    """
    rows, read = found["rows"], found["read"]
    when = f", finished {found['finished']}" if found["finished"] else ""
    lines = [f"{found['version']}{when}", ""]

    def add(label: str, what: str) -> None:
        lines.append(f"{label:<12}{what}")

    add(
        "rows",
        f"{rows:,} kept of {read:,} read; {found['captions']:,} captions, duplicates within a "
        "shard counted once",
    )
    if found["repeated"] and found["repeated"]["rows"]:
        add("repeated", f"{found['repeated']['rows']:,} rows have a key that another shard has too")
        for one in found["repeated"]["examples"]:
            add("", f"{one['key']} in {one['first']} and {one['again']}")
    for i, (side, usable) in enumerate(found["usable"].items()):
        add("" if i else "usable", f"{usable:>10,} at {side} ({_percent(usable, rows)})")
    add(
        "size",
        f"{byte_size(found['bytes'])}; {found['bytes_a_row'] / 1e3:,.2f} kB per caption; its "
        f"tokens in fp16 take {found['fp16_token_bytes_a_row'] / 1e3:,.2f} kB (tokens × width × 2)",
    )
    shards = found["shards"]
    few, middle, many = (byte_size(shards[f"{of}_bytes"]) for of in ("min", "median", "max"))
    empty = f"; {shards['empty']:,} more without a usable row" if shards["empty"] else ""
    add("shards", f"{shards['count']:,}, of {few} to {many}, median {middle}{empty}")
    add("pool", found["pool"])
    for name, length in found["tokens"].items():
        lines += [
            "",
            f"{name} tokens: mean {length['mean']:.1f}, median {length['median']}, 95 % have at "
            f"most {length['percentile_95']}, longest {length['longest']}; width {length['width']}",
            *histogram({int(k): n for k, n in length["histogram"].items()}),
        ]
    for label, meaning in (("filtered", "unwanted"), ("quarantined", "unusable")):
        counts = found[label]
        total = sum(c["rows"] for c in counts.values())
        lines += ["", f"{label}: {total:,} {meaning}"]
        for reason, c in counts.items():
            lines.append(f"  {c['rows']:>10,}  {_percent(c['rows'], read):>7}  {reason}")
    lines += ["", "encoders"]
    for role, encoder in found["encoders"].items():
        named = f"{encoder['name']}, {encoder['dtype']}, sha256 {encoder['sha256'][:12]}"
        lines.append(f"  {role:<18}{named}")
    lines += ["", "precision, and its root mean square error relative to the values"]
    for name, precision in found["precision"].items():
        error = found["rms_error"].get(name)
        lines.append(f"  {name:<18}{precision:<6}" + ("" if error is None else f"{error:.2g}"))
    lines += ["", "throughput per actor"]
    for stage, rate in found["rows_per_s"].items():
        lines.append(
            f"  {stage:<18}{rate:,.0f} rows/s" if rate >= 10 else f"  {stage:<18}{rate:.2f} rows/s"
        )
    if found["batches"]:
        lines += ["", "batch sizes"]
    for name, size in _ordered(found["batches"]):
        most = f" to {size['most']:,}" if size["most"] > size["least"] else ""
        what = "pictures" if name == "clip_image" else "tokens"
        lines.append(f"  {name:<18}{size['least']:,}{most} {what}")
    if quarantined is not None:
        lines += [
            "",
            f"the first {len(quarantined):,} quarantined" if quarantined else "no row quarantined",
        ]
        for row in quarantined:
            detail = f": {row['detail']}" if row["detail"] else ""
            lines.append(f"  {row['key']}  ({row['source']})  {row['reason']}{detail}")
    return "\n".join(lines)


def histogram(counts: Mapping[int, int]) -> list[str]:
    """Histogram lines: bins of equal width, each with a bar, its count and its share."""
    least, most = min(counts), max(counts)
    step = next((s for s in BIN_WIDTHS if most // s - least // s < MAX_BINS), BIN_WIDTHS[-1])
    bins = dict.fromkeys(range(least // step, most // step + 1), 0)
    for length, n in counts.items():
        bins[length // step] += n
    top, total = max(bins.values()), sum(bins.values())
    ends = [f"{at * step}" if step == 1 else f"{at * step}–{at * step + step - 1}" for at in bins]
    return [
        f"  {label:>9}  {bar(n / top):<{BAR_WIDTH}}  {n:>10,}  {_percent(n, total):>7}"
        for label, n in zip(ends, bins.values(), strict=True)
    ]


def bar(share: float) -> str:
    """A bar in steps of an eighth of a character; any share above 0 is visible."""
    eighths = max(round(share * BAR_WIDTH * 8), int(share > 0))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"
