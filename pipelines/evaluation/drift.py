"""How far a data set version has drifted from an earlier one, each number with a 95 % interval.

Compared are the shards that the earlier version lacks with all of the earlier version, as the rows
that both share would hide a change. If there are no such shards, all of both are compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ediffi_core.distances import mmd_error, unbiased_mmd
from ediffi_core.features import Features, gaussian
from pipelines.store.artifacts import Store
from pipelines.store.columns import unpacked
from pipelines.store.dataset import Version
from pipelines.store.shard_file import Ints, ShardFiles

Z = 1.959963984540054
BANDWIDTH_ROWS = 500
"""Rows whose median distance is the kernel's bandwidth."""


@dataclass(frozen=True, kw_only=True)
class Drifted:
    """One number about two versions, with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """The fields."""
        return asdict(self)


@dataclass(frozen=True)
class Part:
    """Some shards of a version."""

    version: Version
    shards: Ints
    """Their numbers. [S]"""

    empty: tuple[str, ...]
    """Records of shards without rows, which the version does not list."""

    def sample(self, count: int, rng: np.random.Generator) -> dict[str, Any]:
        """Lengths and vectors of rows that are drawn without replacement; all if they are fewer.

        Returns:
            Sequence embedding → lengths in tokens [N]; pooled embedding → vectors [N, D] float64.
        """
        header, rows = self.version.header, self.version.column("rows")[self.shards]
        starts = np.concatenate([[0], np.cumsum(rows)])
        drawn = np.sort(rng.permutation(int(starts[-1]))[:count])
        at = np.searchsorted(starts, drawn, "right") - 1
        group, row = np.divmod(drawn - starts[at], header.packing.row_group_rows)
        sequences = [e.name for e in header.embeddings if e.kind == "sequence"]
        pooled = [e.name for e in header.embeddings if e.kind == "pooled"]
        columns = [*(f"{name}_length" for name in sequences), *pooled]
        found: dict[str, list[Any]] = {name: [] for name in (*sequences, *pooled)}
        files = ShardFiles(self.version)
        last, held = None, None
        for shard, number, within in zip(self.shards[at], group, row, strict=True):
            if (shard, number) != last or held is None:
                held = files.read(int(shard), int(number), columns)
                last = (shard, number)
            for name in sequences:
                found[name].append(int(held.numbers[f"{name}_length"][within]))
            for name in pooled:
                found[name].append(held.value(name, within).copy())
        vectors = {n: unpacked(np.stack(found[n]), header.packing.pooled).double() for n in pooled}
        return {name: np.array(found[name]) for name in sequences} | vectors

    def quarantined(self) -> tuple[int, int]:
        """Quarantined rows, and all rows that were read."""
        bad = read = 0
        table = self.version.table.take(self.shards)
        for rows, quarantined, filtered in zip(
            *(table[name].to_pylist() for name in ("rows", "quarantined", "filtered")), strict=True
        ):
            away = sum(json.loads(quarantined).values())
            bad, read = bad + away, read + rows + away + sum(json.loads(filtered).values())
        for path in self.empty:
            record = self.version.store.read_json(path) or {"quarantined": {}, "read": 0}
            bad, read = bad + sum(record["quarantined"].values()), read + record["read"]
        return bad, read


def compare(
    store: Store, before: str, now: str, *, rows: int, seed: int
) -> tuple[dict[str, Drifted], dict[str, int]]:
    """Compare two versions of a data set.

    Args:
        before: folder of the earlier version.
        now: folder of the later one.
        rows: rows of each that lengths and embeddings are compared on, at most.
        seed: seed of their choice.

    Returns:
        What was measured → the number: ``quarantined``, the difference of the shares of quarantined
        rows; ``length/NAME``, the Kolmogorov–Smirnov distance of the lengths of captions in tokens
        (0 to 1); ``mmd/NAME``, the unbiased MMD² of pooled embeddings (0 to 2). And how many shards
        and rows were compared.
    """
    old, new = _parts(store, before, now)
    samples = [part.sample(rows, np.random.default_rng(seed)) for part in (old, new)]
    found = {"quarantined": share_difference(*old.quarantined(), *new.quarantined())}
    for name in samples[0].keys() & samples[1].keys():
        a, b = samples[0][name], samples[1][name]
        if isinstance(a, Tensor):
            if min(len(a), len(b)) > 2:
                found[f"mmd/{name}"] = embedding_distance(a, b)
        else:
            found[f"length/{name}"] = length_distance(a, b)
    counts = {"shards_before": len(old.shards), "shards": len(new.shards)}
    sizes = [max(map(len, sample.values()), default=0) for sample in samples]
    counts |= {"rows_before": sizes[0], "rows": sizes[1]}
    return dict(sorted(found.items())), counts


def _parts(store: Store, before: str, now: str) -> tuple[Part, Part]:
    versions = [Version.open(store, folder) for folder in (before, now)]
    paths = [version.table["path"].to_pylist() for version in versions]
    empty = [_empty(store, folder) for folder in (before, now)]
    known = set(paths[0])
    added = [i for i, path in enumerate(paths[1]) if path not in known]
    less = tuple(path for path in empty[1] if path not in empty[0])
    every = [np.arange(len(version)) for version in versions]
    old = Part(versions[0], every[0], empty[0])
    if not added:
        return old, Part(versions[1], every[1], empty[1])
    return old, Part(versions[1], np.array(added), less)


def _empty(store: Store, folder: str) -> tuple[str, ...]:
    stats: Mapping[str, Any] = store.read_json(f"{folder}/stats.json") or {}
    return tuple(stats.get("empty", ()))


def share_difference(bad: int, of: int, bad_now: int, of_now: int) -> Drifted:
    """Difference of two shares, with the interval of Agresti and Caffo (2000)."""
    shares = [(x + 1) / (n + 2) for x, n in ((bad, of), (bad_now, of_now))]
    squares = [p * (1 - p) / (n + 2) for p, n in zip(shares, (of, of_now), strict=True)]
    centre, width = shares[1] - shares[0], Z * math.sqrt(sum(squares))
    value = (bad_now / of_now if of_now else 0.0) - (bad / of if of else 0.0)
    return Drifted(value=value, low=centre - width, high=centre + width)


def length_distance(a: Ints, b: Ints) -> Drifted:
    """Kolmogorov–Smirnov distance of two samples [N] and [M], with the interval of Dvoretzky,
    Kiefer and Wolfowitz with Massart's constant (1990) for both distributions together."""
    at = np.union1d(a, b)
    below = [np.searchsorted(np.sort(x), at, "right") / len(x) for x in (a, b)]
    value = float(np.abs(below[0] - below[1]).max())
    width = sum(math.sqrt(math.log(2 / 0.025) / (2 * len(x))) for x in (a, b))
    return Drifted(value=value, low=max(0.0, value - width), high=min(1.0, value + width))


def embedding_distance(a: Tensor, b: Tensor) -> Drifted:
    """Unbiased MMD² of vectors [N, D] and [M, D], of a Gaussian kernel; with the interval of the
    jackknife. The bandwidth is the median distance in the first sample (Gretton et al. 2012)."""
    some = a[:BANDWIDTH_ROWS]
    kernel = gaussian(max(float(torch.pdist(some).median()), 1e-6))
    value = unbiased_mmd(a, b, kernel)
    error = mmd_error(Features.of(a), Features.of(b), kernel, unbiased=True)
    return Drifted(value=value, low=value - Z * error, high=value + Z * error)
