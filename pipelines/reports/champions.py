"""A model's ensembles as a table, and as data for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipelines.models.champions import SHORT_LENGTH, Registry
from pipelines.store.artifacts import MANIFEST, Store

SHOWN = 3
"""Numbers of an ensemble in a line; JSON has all."""


def data(store: Store, book: Registry) -> dict[str, Any]:
    """The newest version first, each with the metrics of its evaluation."""
    versions = []
    for fingerprint, offer in reversed(book.versions.items()):
        last = [e for e in book.history if e.fingerprint == fingerprint][-1]
        manifest = store.read_json(f"{offer.folder}/{MANIFEST}") or {}
        versions.append(
            {
                "version": book.version(fingerprint),
                "marks": book.aliases(fingerprint),
                "offered": offer.when,
                "metrics": manifest.get("metrics", {}),
                **asdict(last),
            }
        )
    return {"versions": versions, "history": [asdict(e) for e in book.history]}


def text(name: str, found: dict[str, Any], *, with_history: bool) -> str:
    rows = [
        (
            str(v["version"]),
            v["fingerprint"][:SHORT_LENGTH],
            ", ".join(v["marks"]),
            moment(v["when"]),
            f"{v['what']} by {v['by']}: {v['why']}",
            figures(v["numbers"] or v["metrics"]),
        )
        for v in found["versions"]
    ]
    lines = [name, *aligned(rows)]
    if with_history:
        events = [
            (
                moment(e["when"]),
                e["fingerprint"][:SHORT_LENGTH],
                e["what"],
                f"{e['by']}: {e['why']}",
            )
            for e in found["history"]
        ]
        lines += ["", "history", *aligned(events)]
    return "\n".join(lines)


def moment(when: str) -> str:
    """To the minute, in UTC as it is kept."""
    return when[:16].replace("T", " ")


def figures(numbers: dict[str, float]) -> str:
    """The first of them, without those that belong to others."""
    shown = [(k, v) for k, v in numbers.items() if not k.endswith(("_ci95", "_pictures"))]
    return "  ".join(f"{key} {value:.4g}" for key, value in shown[:SHOWN])


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = (zip(row, widths, strict=True) for row in rows)
    return ["  " + "  ".join(f"{c:<{w}}" for c, w in row).rstrip() for row in cells]
