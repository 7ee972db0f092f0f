"""A model's ensembles (versions, champion, history), as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipelines.formatting import AUXILIARY_SUFFIXES, align_columns
from pipelines.models.champions import SHORT_LENGTH, Registry, is_verified
from pipelines.store.artifacts import MANIFEST, Store

MAX_METRICS = 3
"""Metrics shown per line; the JSON has all."""


def data(store: Store, model: str, book: Registry) -> dict[str, Any]:
    """All versions, newest first, with the metrics of their evaluation; and the history.

    ``verified`` says whether a version's ``ensemble.json`` is the one that was registered; it is
    false for versions of earlier releases, whose hash the registry lacks. ``signed_by`` are the
    public keys that have signed it.
    """
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
                "verified": is_verified(store, book, offer),
                "signed_by": sorted(book.signers(model, fingerprint)),
                **asdict(last),
            }
        )
    return {"versions": versions, "history": [asdict(e) for e in book.history]}


def text(name: str, found: dict[str, Any], *, with_history: bool) -> str:
    """A table of a model's versions for the terminal.

    Args:
        found: from :func:`data`.
        with_history: whether to add a table of all events.
    """
    rows = [
        (
            str(v["version"]),
            v["fingerprint"][:SHORT_LENGTH],
            ", ".join([*v["marks"], *(["signed"] if v["signed_by"] else [])]),
            minute_text(v["when"]),
            f"{v['what']} by {v['by']}: {v['why']}",
            metrics_text(v["numbers"] or v["metrics"]),
        )
        for v in found["versions"]
    ]
    lines = [name, *_indented(rows)]
    if with_history:
        events = [
            (
                minute_text(e["when"]),
                e["fingerprint"][:SHORT_LENGTH],
                e["what"],
                f"{e['by']}: {e['why']}",
            )
            for e in found["history"]
        ]
        lines += ["", "history", *_indented(events)]
    return "\n".join(lines)


def minute_text(when: str) -> str:
    """A stored UTC time, to the minute."""
    return when[:16].replace("T", " ")


def metrics_text(metrics: dict[str, float]) -> str:
    """The first few metrics, without intervals and counts."""
    shown = [(k, v) for k, v in metrics.items() if not k.endswith(AUXILIARY_SUFFIXES)]
    return "  ".join(f"{key} {value:.4g}" for key, value in shown[:MAX_METRICS])


def _indented(rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [f"  {line}" for line in align_columns(rows)]
