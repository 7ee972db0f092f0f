"""What a data-set version holds, as numbers and as a page of plain text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.formatting import byte_size
from pipelines.store.artifacts import MANIFEST, Store
from pipelines.store.dataset import Version

BAR = 28  # characters of a histogram's longest
BINS = 12
ORDER = ("decode", "t5", "clip", "clip_text", "clip_text_pooled", "clip_image", "write")
"""In which things are told: JSON keeps none."""

STEPS = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Embedded:
    """The result of an embed node."""

    version: Version
    stats: Mapping[str, Any]
    manifest: Mapping[str, Any]


def find(store: Store, name: str) -> Embedded:
    """A version by the name of its embed node (the one made last), or by its folder.

    Raises:
        ValueError: There is none.
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
    return Embedded(version, stats, store.read_json(f"{folder}/{MANIFEST}") or {})


def data(embedded: Embedded) -> dict[str, Any]:
    """All that the page says."""
    version, stats = embedded.version, embedded.stats
    header, sizes = version.header, version.column("bytes")
    widths = {e.name: e.dim for e in header.embeddings}
    tokens = {name: _lengths(counts, widths[name]) for name, counts in _told(stats["tokens"])}
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
        "encoders": {role: dict(e) for role, e in _told(header.encoders)},
        "precision": {
            e.name: header.packing.precision if e.kind == "sequence" else header.packing.pooled
            for _, e in _told({e.name: e for e in header.embeddings})
        },
        "rms_error": dict(stats["rms_error"]),
        "pictures": header.packing.pictures,
        "batches": dict(stats.get("batches", {})),
        "seconds": dict(stats["seconds"]),
        "rows_per_s": {s: stats["read"] / t for s, t in _told(stats["seconds"]) if t},
        "shards": {
            "count": len(version),
            "empty": len(stats.get("empty", ())),
            "min_bytes": int(sizes.min()),
            "median_bytes": float(np.median(sizes)),
            "max_bytes": int(sizes.max()),
        },
        "pool": stats["pool"],
    }


def _told(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(found.items(), key=lambda i: (ORDER.index(i[0]) if i[0] in ORDER else 99, i[0]))


def _shares(counts: Mapping[str, int], of: int) -> dict[str, dict[str, float]]:
    """The most frequent first."""
    ordered = sorted(counts.items(), key=lambda c: (-c[1], c[0]))
    return {reason: {"rows": n, "share": n / of if of else 0.0} for reason, n in ordered}


def _lengths(counts: Mapping[str, int], width: int) -> dict[str, Any]:
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


def faults(embedded: Embedded, most: int) -> list[dict[str, str]]:
    """The first quarantined rows, in the order of the version's shards."""
    found: list[dict[str, str]] = []
    for path in _with_faults(embedded):
        row = embedded.version.store.read_json(path)
        if row is None:
            raise ValueError(f"{embedded.version.store.full(path)} is gone, and with it its faults")
        found += row["faults"]
        if len(found) >= most:
            break
    return found[:most]


def _with_faults(embedded: Embedded) -> Iterator[str]:
    """The rows in the pool of shards that have any."""
    table = embedded.version.table
    for path, counts in zip(table["path"], table["quarantined"], strict=True):
        if counts.as_py() != "{}":
            yield path.as_py().removesuffix(".parquet") + ".json"
    yield from embedded.stats.get("empty", ())


def text(found: Mapping[str, Any], faults: list[dict[str, str]] | None = None) -> str:
    """The page."""
    rows, read = found["rows"], found["read"]
    when = f", finished {found['finished']}" if found["finished"] else ""
    lines = [f"{found['version']}{when}", ""]

    def say(label: str, what: str) -> None:
        lines.append(f"{label:<12}{what}")

    say(
        "rows",
        f"{rows:,} kept of {read:,} read; {found['captions']:,} captions, equal ones of a "
        "shard counted once",
    )
    if found["repeated"] and found["repeated"]["rows"]:
        say("repeated", f"{found['repeated']['rows']:,} rows have a key that another shard has too")
        for one in found["repeated"]["examples"]:
            say("", f"{one['key']} in {one['first']} and {one['again']}")
    for i, (side, usable) in enumerate(found["usable"].items()):
        say("" if i else "usable", f"{usable:>10,} at {side} ({_percent(usable, rows)})")
    say(
        "size",
        f"{byte_size(found['bytes'])}; {found['bytes_a_row'] / 1e3:,.2f} kB a caption, where its "
        f"tokens in fp16 are {found['fp16_token_bytes_a_row'] / 1e3:,.2f} kB (tokens × width × 2)",
    )
    shards = found["shards"]
    few, middle, many = (byte_size(shards[f"{of}_bytes"]) for of in ("min", "median", "max"))
    empty = f"; {shards['empty']:,} more without a usable row" if shards["empty"] else ""
    say("shards", f"{shards['count']:,}, of {few} to {many}, median {middle}{empty}")
    say("pool", found["pool"])
    for name, length in found["tokens"].items():
        lines += [
            "",
            f"{name} tokens: mean {length['mean']:.1f}, median {length['median']}, 95 % have at "
            f"most {length['percentile_95']}, longest {length['longest']}; width {length['width']}",
            *histogram({int(k): n for k, n in length["histogram"].items()}),
        ]
    for label, said in (("filtered", "not wanted"), ("quarantined", "not usable")):
        counts = found[label]
        total = sum(c["rows"] for c in counts.values())
        lines += ["", f"{label}: {total:,} {said}"]
        for reason, c in counts.items():
            lines.append(f"  {c['rows']:>10,}  {_percent(c['rows'], read):>7}  {reason}")
    lines += ["", "encoders"]
    for role, encoder in found["encoders"].items():
        named = f"{encoder['name']}, {encoder['dtype']}, sha256 {encoder['sha256'][:12]}"
        lines.append(f"  {role:<18}{named}")
    lines += ["", "precision, and its root mean square error relative to the values'"]
    for name, precision in found["precision"].items():
        error = found["rms_error"].get(name)
        lines.append(f"  {name:<18}{precision:<6}" + ("" if error is None else f"{error:.2g}"))
    lines += ["", "throughput of an actor"]
    for stage, rate in found["rows_per_s"].items():
        lines.append(
            f"  {stage:<18}{rate:,.0f} rows/s" if rate >= 10 else f"  {stage:<18}{rate:.2f} rows/s"
        )
    if found["batches"]:
        lines += ["", "worked on together"]
    for name, size in _told(found["batches"]):
        most = f" to {size['most']:,}" if size["most"] > size["least"] else ""
        what = "pictures" if name == "clip_image" else "tokens"
        lines.append(f"  {name:<18}{size['least']:,}{most} {what}")
    if faults is not None:
        lines += ["", f"the first {len(faults):,} quarantined" if faults else "no row quarantined"]
        for fault in faults:
            detail = f": {fault['detail']}" if fault["detail"] else ""
            lines.append(f"  {fault['key']}  ({fault['source']})  {fault['reason']}{detail}")
    return "\n".join(lines)


def histogram(counts: Mapping[int, int]) -> list[str]:
    """Lengths in some bins of equal width, each with a bar."""
    least, most = min(counts), max(counts)
    step = next((s for s in STEPS if most // s - least // s < BINS), STEPS[-1])
    bins = dict.fromkeys(range(least // step, most // step + 1), 0)
    for length, n in counts.items():
        bins[length // step] += n
    top, total = max(bins.values()), sum(bins.values())
    ends = [f"{at * step}" if step == 1 else f"{at * step}–{at * step + step - 1}" for at in bins]
    return [
        f"  {label:>9}  {bar(n / top):<{BAR}}  {n:>10,}  {_percent(n, total):>7}"
        for label, n in zip(ends, bins.values(), strict=True)
    ]


def bar(share: float) -> str:
    """A bar of eighths of a character; something is never nothing."""
    eighths = max(round(share * BAR * 8), int(share > 0))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"
