"""A version of a data set: which shards it is made of, as one small Parquet file.

Shards lie in a pool that versions share, ``embeddings/<recipe>/<source identity>.parquet``: a
version with one more source adds one shard, and points to the others.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ediffi_core.published import tag_changes_activation
from pipelines.store.artifacts import Store

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from pipelines.store.shards import Header

    Ints = np.ndarray[Any, np.dtype[np.int64]]

FILE = "dataset.parquet"

_COLUMNS = {
    "name": "string",
    "path": "string",  # from the store's root
    "rows": "int64",
    "bytes": "int64",
    "sha256": "string",
    "source": "string",  # URL of the source file
    "source_identity": "string",
    "quarantined": "string",  # JSON, reason → rows
    "filtered": "string",  # the same
}
"""Column → its Arrow type, by Arrow's name."""


@dataclass(frozen=True, eq=False)
class Version:
    """A data-set version. A million shards take some 300 MB."""

    store: Store
    folder: str
    header: Header
    """What all its shards have in common."""

    table: pa.Table
    """A row for every shard, by name; see :meth:`write`."""

    @staticmethod
    def write(
        store: Store, folder: str, shards: Sequence[Mapping[str, Any]] | pa.Table, header: Header
    ) -> Version:
        """Writes ``dataset.parquet`` into a folder.

        Args:
            shards: For each a ``name``, ``path``, ``rows``, ``usable`` (resolution → rows), its
                ``bytes`` and ``sha256``, and if known ``source``, ``source_identity``,
                ``quarantined`` and ``filtered`` (reason → rows); or the table of another version,
                a part of it, or :func:`table_of` some shards.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = shards if isinstance(shards, pa.Table) else table_of(shards, header)
        table = table.sort_by("name").combine_chunks()
        _check(table, f"{folder}/{FILE}")
        table = table.replace_schema_metadata(header.to_metadata())
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", write_statistics=False)
        store.write(f"{folder}/{FILE}", sink.getvalue())
        return Version(store, folder, header, table)

    @staticmethod
    def open(store: Store, folder: str) -> Version:
        """ValueError if the folder holds no version, or one that cannot be read."""
        path = f"{folder}/{FILE}"
        data = store.read(path)
        if data is None:
            raise ValueError(f"there is no {store.full(path)}; run its embed node first")
        import pyarrow as pa
        import pyarrow.parquet as pq

        from pipelines.store.shards import Header

        try:
            # Not `read_table`: it imports the slow pyarrow.dataset.
            table = pq.ParquetFile(pa.BufferReader(data)).read().combine_chunks()
            header = Header.from_metadata(table.schema.metadata)
        except (ValueError, OSError) as error:
            raise ValueError(f"{store.full(path)} cannot be read: {error}") from error
        return Version(store, folder, header, table)

    @staticmethod
    def latest(store: Store, node: str) -> Version | None:
        """What a node such as ``embed/train`` made last; None if that cannot be read, or is of an
        older format."""
        pointer = store.read_json(f"nodes/{node}.latest.json")
        folder = f"nodes/{node}-{pointer['fingerprint']}" if pointer else ""
        if not pointer or store.size(f"{folder}/{FILE}") is None:
            return None
        try:
            return Version.open(store, folder)
        except ValueError:
            return None

    def __len__(self) -> int:
        """Shards."""
        return len(self.table)

    def column(self, name: str) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = self.table[name].to_numpy()
        return found

    def path(self, shard: int) -> str:
        found: str = self.table["path"][shard].as_py()
        return found

    def usable(self, resolution: int) -> Ints:
        """[shards] how many rows of each, its first ones, have a picture for this stage."""
        self.header.columns(resolution)  # a ValueError that says which there are
        return self.column(f"usable_{resolution}")

    def counts(self, column: str) -> dict[str, int]:
        """Reason → rows of the whole version, of ``quarantined`` or ``filtered``."""
        total: dict[str, int] = {}
        for found in self.table[column].value_counts().to_pylist():  # most are alike: "{}"
            for reason, rows in json.loads(found["values"]).items():
                total[reason] = total.get(reason, 0) + rows * found["counts"]
        return total

    def missing(self, files: Callable[[str], Mapping[str, int]] | None = None) -> list[str]:
        """Names of shards that are not there, or of another size. Lists the pool once.

        Args:
            files: what lists a folder, for versions that share one; by default the store.
        """
        # Lists, because Arrow imports pandas to make numpy arrays.
        columns = (self.table[name].to_pylist() for name in ("name", "path", "bytes"))
        names, paths, sizes = columns
        there: dict[str, int] = {}
        for folder in dict.fromkeys(path.rpartition("/")[0] for path in paths):
            found = (files or self.store.files)(folder)
            there |= {f"{folder}/{file}": size for file, size in found.items()}
        return [n for n, path, size in zip(names, paths, sizes) if there.get(path) != size]

    def check_encoders(self, expected: Mapping[str, Mapping[str, str]]) -> None:
        """ValueError, naming both, if the embeddings are other encoders' than expected.

        Args:
            expected: Encoder → ``name``, ``sha256``, ``dtype``, … that it must have: those of
                another version's header, or :func:`as_named` in a spec. Where weights are expected
                by their ``sha256`` the name does not count, as a moved folder has another.
        """
        for role, want in expected.items():
            have = self.header.encoders.get(role)
            if have is None or _differ(have, want):
                raise ValueError(
                    f"the shards of {self.store.full(self.folder)} were embedded by "
                    f"{role} {_said(have)}, not by {_said(want)}; embed again, or name that one"
                )


def _differ(have: Mapping[str, str], want: Mapping[str, str]) -> bool:
    """Whether embeddings of the two may be others.

    What an encoder does besides its weights, ``how``, counts where both say it: older shards do
    not. Those had the activation of the model's own configuration, so there ``activation`` counts,
    which is only said of another one.
    """
    told = [what for what in want if what not in ("how", "activation")]
    told = [what for what in told if what != "name" or "sha256" not in want]
    if any(have.get(what) != want[what] for what in told):
        return True
    if "how" in have and "how" in want:
        return have["how"] != want["how"]
    return bool(want.keys() & {"name", "sha256"}) and (
        have.get("activation") != want.get("activation")
    )


def as_named(encoders: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What a header must say of the encoders that a spec names, as nodes have them.

    Of a folder the name says nothing, as it may have moved; of encoders that are made there is
    none. What they hold is in the fingerprint of the embed node.
    """
    named = {
        "t5": (encoders.get("t5"), encoders.get("t5_dtype", "float32")),
        "clip": (encoders.get("clip"), "float32"),
        **{name: (more["model"], "float32") for name, more in encoders.get("more", {}).items()},
    }
    found = {
        role: {"dtype": dtype, **({} if Path(name).is_dir() else {"name": name})}
        for role, (name, dtype) in named.items()
        if name
    }
    if tag_changes_activation(encoders.get("clip") or "", encoders.get("clip_pretrained")):
        found["clip"]["activation"] = "QuickGELU of its tag"
    return found


def _said(encoder: Mapping[str, str] | None) -> str:
    if not encoder:
        return "(none)"
    weights = [f"sha256 {encoder['sha256'][:12]}"] if "sha256" in encoder else []
    said = (encoder[what] for what in ("dtype", "activation", "how") if what in encoder)
    details = ", ".join([*weights, *said])
    return f"{encoder.get('name', 'another')} ({details})" if details else encoder["name"]


def table_of(shards: Sequence[Mapping[str, Any]], header: Header) -> pa.Table:
    """A row for each shard, some 300 bytes; see :meth:`Version.write`."""
    import pyarrow as pa

    def values(name: str, kind: str) -> pa.Array:
        if name in ("quarantined", "filtered"):
            return pa.array([json.dumps(s.get(name) or {}, sort_keys=True) for s in shards], kind)
        optional = name in ("source", "source_identity")
        return pa.array([s.get(name) if optional else s[name] for s in shards], kind)

    columns = {name: values(name, kind) for name, kind in _COLUMNS.items()}
    for side in header.resolutions:
        columns[f"usable_{side}"] = pa.array([s["usable"][side] for s in shards], pa.int64())
    return pa.table(columns)


def _check(table: pa.Table, path: str) -> None:
    if not len(table):
        raise ValueError(f"{path} would hold no shards")
    counts = table["name"].value_counts()
    if len(counts) < len(table):
        [twice] = [c["values"] for c in counts.to_pylist() if c["counts"] > 1][:1]
        raise ValueError(f"{path} would hold shard {twice} twice")
