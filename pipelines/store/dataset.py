"""A data set version: a list of its shards, as one small Parquet file.

Versions share a pool of shards, ``embeddings/<recipe>/<source identity>.parquet``: a version with
one more source adds one shard and refers to the others.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ediffi_core.published import tag_changes_activation
from pipelines.store.artifacts import MANIFEST, Store, sha256

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from pipelines.store.shards import Header

    Ints = np.ndarray[Any, np.dtype[np.int64]]

FILE = "dataset.parquet"

_COLUMNS = {
    "name": "string",
    "path": "string",  # relative to the store's root
    "rows": "int64",
    "bytes": "int64",
    "sha256": "string",
    "source": "string",  # URL of the source file
    "source_identity": "string",
    "quarantined": "string",  # JSON, reason → rows
    "filtered": "string",  # likewise
}
"""Column → its Arrow type, by Arrow's name."""


@dataclass(frozen=True, eq=False)
class Version:
    """A data set version. A million shards take some 300 MB of memory."""

    store: Store
    folder: str
    header: Header
    """Header of all its shards."""

    table: pa.Table
    """One row per shard, sorted by name; see :meth:`write`."""

    @staticmethod
    def write(
        store: Store, folder: str, shards: Sequence[Mapping[str, Any]] | pa.Table, header: Header
    ) -> Version:
        """Write ``dataset.parquet`` into a folder.

        Args:
            store: The store.
            folder: Folder of the version in the store.
            shards: A record per shard with ``name``, ``path``, ``rows``, ``usable`` (resolution →
                rows), ``bytes`` and ``sha256``, and optionally ``source``, ``source_identity``,
                ``quarantined`` and ``filtered`` (reason → rows); or a table: all or part of
                another version's, or from :func:`table_of`.
            header: The header of all shards.

        Raises:
            ValueError: There is no shard, or two have the same name.
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
        """Open the version in a folder.

        Raises:
            ValueError: There is none, it cannot be read, or it is not what its node wrote.
        """
        path = f"{folder}/{FILE}"
        data = store.read(path)
        if data is None:
            raise ValueError(f"there is no {store.full(path)}; run its embed node first")
        node = store.read_json(f"{folder}/{MANIFEST}") or {}
        listed = node.get("files", {}).get(FILE, {}).get("sha256")
        if listed not in (None, sha256(data)):
            raise ValueError(
                f"{store.full(path)} is not what its node wrote; run its pipeline again"
            )
        import pyarrow as pa
        import pyarrow.parquet as pq

        from pipelines.store.shards import Header

        try:
            # Not `read_table`, whose module is slow to import. Without threads, because Arrow's
            # sometimes abort the process when it exits soon after, as after a wrong option.
            file = pq.ParquetFile(pa.BufferReader(data))
            table = file.read(use_threads=False).combine_chunks()
            header = Header.from_metadata(table.schema.metadata)
        except (ValueError, OSError) as error:
            raise ValueError(f"{store.full(path)} cannot be read: {error}") from error
        return Version(store, folder, header, table)

    @staticmethod
    def latest(store: Store, node: str) -> Version | None:
        """The latest version of a node such as ``embed/train``.

        None if there is none, or it cannot be read or has an older format.
        """
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
        """A column of :attr:`table`. [shards]"""
        found: np.ndarray[Any, Any] = self.table[name].to_numpy()
        return found

    def path(self, shard: int) -> str:
        """Path of a shard in the store, by its number."""
        found: str = self.table["path"][shard].as_py()
        return found

    def usable(self, resolution: int) -> Ints:
        """How many rows of each shard have a picture for this stage; they are its first rows.
        [shards]"""
        self.header.columns(resolution)  # raises a ValueError that lists the resolutions
        return self.column(f"usable_{resolution}")

    def counts(self, column: str) -> dict[str, int]:
        """Reason → rows of the whole version. ``column``: ``quarantined`` or ``filtered``."""
        total: dict[str, int] = {}
        for found in self.table[column].value_counts().to_pylist():  # most values are "{}"
            for reason, rows in json.loads(found["values"]).items():
                total[reason] = total.get(reason, 0) + rows * found["counts"]
        return total

    def missing(self, files: Callable[[str], Mapping[str, int]] | None = None) -> list[str]:
        """Names of shards that are missing or have another size. Lists the pool once.

        Args:
            files: Lists a folder; by default, the store does. Versions that share a pool may cache
                it.
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
        """Check that the embeddings were made by the expected encoders.

        Args:
            expected: Encoder → ``name``, ``sha256``, ``dtype``, …, from another version's header
                or :func:`encoders_from_spec`. If ``sha256`` is given, the name is ignored: a moved
                folder has another name.

        Raises:
            ValueError: An encoder differs; names both.
        """
        for role, want in expected.items():
            have = self.header.encoders.get(role)
            if have is None or _encoders_differ(have, want):
                raise ValueError(
                    f"the shards of {self.store.full(self.folder)} were embedded by "
                    f"{role} {_describe(have)}, not by {_describe(want)}; embed again, or "
                    "name that encoder in the spec"
                )


def _encoders_differ(have: Mapping[str, str], want: Mapping[str, str]) -> bool:
    """Whether two encoders may give different embeddings.

    ``how`` describes what an encoder does besides its weights. It is compared if both have it;
    older shards do not. Those used the activation of the model's own configuration, so for them
    ``activation`` is compared, which is present only for another activation.
    """
    compared = [what for what in want if what not in ("how", "activation")]
    compared = [what for what in compared if what != "name" or "sha256" not in want]
    if any(have.get(what) != want[what] for what in compared):
        return True
    if "how" in have and "how" in want:
        return have["how"] != want["how"]
    return bool(want.keys() & {"name", "sha256"}) and (
        have.get("activation") != want.get("activation")
    )


def encoders_from_spec(encoders: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What :meth:`Version.check_encoders` should expect of the encoders that a spec names.

    A folder's name is left out, as it may have moved, and so are encoders that a node makes: their
    content is part of the embed node's fingerprint.
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


def _describe(encoder: Mapping[str, str] | None) -> str:
    if not encoder:
        return "(none)"
    weights = [f"sha256 {encoder['sha256'][:12]}"] if "sha256" in encoder else []
    given = (encoder[what] for what in ("dtype", "activation", "how") if what in encoder)
    details = ", ".join([*weights, *given])
    return f"{encoder.get('name', 'another')} ({details})" if details else encoder["name"]


def table_of(shards: Sequence[Mapping[str, Any]], header: Header) -> pa.Table:
    """One table row per shard record, some 300 bytes; see :meth:`Version.write`."""
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
        raise ValueError(f"{path} would have no shards")
    counts = table["name"].value_counts()
    if len(counts) < len(table):
        [twice] = [c["values"] for c in counts.to_pylist() if c["counts"] > 1][:1]
        raise ValueError(f"{path} would have shard {twice} twice")
