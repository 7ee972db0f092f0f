"""``ediffi gc`` after a year of weekly retrainings with tiny nodes, in a store of 10⁵ files.

python tests/benchmarks/bench_collect.py [--record]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from harness import report

sys.path.insert(0, str(Path(__file__).parents[1] / "kits"))

from year_kit import MODEL, Year

from pipelines.formatting import byte_size
from pipelines.models import champions
from pipelines.runs.collect import KINDS, collect, find_garbage
from pipelines.runs.needed import Policy
from pipelines.store.artifacts import Store

WEEKS, SHARDS = 52, 430
T = TypeVar("T")


def timed(work: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store.at(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: None)  # only here, while the year is made
            Year(store, shards=SHARDS).run(WEEKS)
        files, listed = timed(lambda: store.files(""))
        found, looked = timed(lambda: find_garbage(store, Policy()))
        removed, took = timed(lambda: collect(store, Policy()))
        assert removed.removed == found.removed
        kinds = [(kind, found.amount(kind), found.kept[kind]) for kind in KINDS]
        again, idle = timed(lambda: find_garbage(store, Policy()))
        assert not any(again.removed.values())
        line = champions.succession(champions.read(store, MODEL).history)
        lines = [
            f"A model is retrained {WEEKS} times, with {SHARDS} new shards a week, and promoted "
            f"{len(line)} times: {len(files):,} files, {byte_size(sum(files.values()))}. Kept are "
            "the champion, two before it and the last run, with all that they were made from.",
            "",
            f"- to list all files: {listed:.1f} s",
            f"- `ediffi gc`: {looked:.1f} s",
            f"- `ediffi gc --delete`: {took:.1f} s; `ediffi gc` after it: {idle:.1f} s",
            "",
            "| | removed | | kept | |",
            "|---|---|---|---|---|",
            *(
                f"| {kind} | {gone.count:,} | {byte_size(gone.bytes)} | {kept.count:,} | "
                f"{byte_size(kept.bytes)} |"
                for kind, gone, kept in kinds
            ),
        ]
    report("A year of retrainings, collected", lines)


if __name__ == "__main__":
    main()
