"""A shard of embedded pairs: its Parquet schema (format 3), writer and header.

| column | content |
|---|---|
| ``key`` ``caption`` ``source`` | strings; the source is the file that the pair came from |
| ``score_NAME`` | float32 score, for filters |
| a pooled embedding's name | the packed vector |
| a sequence's name, ``NAME_length`` | the packed tokens, without padding, and their number |
| ``pixels_R`` | the picture for the stage of side R; null if the picture is too small |
| ``pixels_R_height`` ``_width`` | size of a full picture |

Values are raw bytes, since Arrow's lists are 6–9 times slower to read. The header, JSON in the
file's metadata, describes them. Rows that more stages can use come first, so a stage's rows are the
first ``usable[R]``. Row groups are small, as training shuffles in units of row groups.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ediffi_core.embeddings import EmbeddingSpec
from pipelines.store import columns
from pipelines.store.columns import Bytes

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 3
_META = b"ediffi"
_ONE_PAGE = 2**30  # bytes: keeps a row group's column in one page, so that it can be read in place


def pixels_column(resolution: int) -> str:
    """Name of the column of a stage's pictures; a stage reads only its own."""
    return f"pixels_{resolution}"


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How values are stored: a trade of bytes against precision."""

    precision: Literal["fp16", "bf16", "int8"] = "fp16"
    """Precision of token sequences. int8 has one scale per token."""

    pooled: Literal["fp16", "fp32"] = "fp16"
    """Precision of pooled vectors."""

    pictures: Literal["raw", "png", "jpeg"] = "raw"
    """Encoding of pictures."""

    jpeg_quality: int = 95
    """1 to 100. Chroma is not subsampled."""

    full: tuple[int, ...] = ()
    """Resolutions of stages that train on crops: their pictures are stored whole, scaled to that
    shortest side."""

    row_group_rows: int = 32
    """Rows that are read at once. At 200 kB per row, 32 rows make 6 MB, a good request size."""

    zstd: bool = False
    """Compress sequences: a fifth smaller in fp16, but a third slower to read."""

    def __post_init__(self) -> None:
        for name, known in (
            ("precision", ("fp16", "bf16", "int8")),
            ("pooled", ("fp16", "fp32")),
            ("pictures", ("raw", "png", "jpeg")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        if not 1 <= self.jpeg_quality <= 100 or self.row_group_rows < 1:
            raise ValueError(
                "need jpeg_quality from 1 to 100 and row_group_rows >= 1, "
                f"got {self.jpeg_quality} and {self.row_group_rows}"
            )


@dataclass(frozen=True, kw_only=True)
class Header:
    """What all rows of a shard, and all shards of a version, have in common."""

    resolutions: tuple[int, ...]
    embeddings: tuple[EmbeddingSpec, ...]
    encoders: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Encoder → its identity: ``name``, ``sha256`` of its weights, ``dtype``, …"""

    packing: Packing = Packing()

    def __post_init__(self) -> None:
        if unknown := set(self.packing.full) - set(self.resolutions):
            raise ValueError(
                f"full pictures of {sorted(unknown)}, which are not among the resolutions "
                f"{list(self.resolutions)}"
            )

    def to_metadata(self) -> dict[bytes, bytes]:
        """The header as Parquet metadata."""
        return {_META: json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True).encode()}

    @staticmethod
    def from_metadata(metadata: Mapping[bytes, bytes] | None) -> Header:
        """Read the header; ValueError if another program or format version wrote the file."""
        try:
            meta = json.loads((metadata or {})[_META])
            found = meta.pop("format")
        except (KeyError, ValueError, AttributeError):
            raise ValueError("not written by this project") from None
        if found != FORMAT:
            raise ValueError(f"of format {found}, this version reads {FORMAT}; embed again")
        packing = meta["packing"]
        return Header(
            resolutions=tuple(meta["resolutions"]),
            embeddings=tuple(EmbeddingSpec(**e) for e in meta["embeddings"]),
            encoders=meta["encoders"],
            packing=Packing(**{**packing, "full": tuple(packing["full"])}),
        )

    def columns(self, resolution: int) -> list[str]:
        """The columns that a stage reads; ValueError if there are no pictures for it."""
        if resolution not in self.resolutions:
            sides = ", ".join(map(str, self.resolutions))
            raise ValueError(
                f"the data set has pictures of {sides} pixels, none of {resolution}; "
                "add it to the resolutions and embed again"
            )
        names = [e.name for e in self.embeddings] + [pixels_column(resolution)]
        if resolution in self.packing.full:
            names += [f"{pixels_column(resolution)}_{side}" for side in ("height", "width")]
        return names


PackingSums = tuple[float, float]
"""Sum of squares of an embedding, and of the error that packing adds."""


@dataclass(frozen=True)
class PackedValue:
    """A value that is already packed, in place of a tensor or an array."""

    data: bytes
    shape: tuple[int, ...]
    """Shape of the unpacked value."""

    sums: PackingSums = (0.0, 0.0)
    """Packing errors; for embeddings only."""


@dataclass(frozen=True)
class WrittenShard:
    """A shard from :func:`write`."""

    data: bytes
    """The Parquet file."""

    order: list[int]
    """Input row numbers, in the order of the shard."""

    usable: dict[int, int]
    """Resolution → number of rows with a picture for it."""

    sums: dict[str, list[PackingSums]]
    """Embedding → packing errors of each row, in the order of the shard."""

    @property
    def record(self) -> dict[str, Any]:
        """``rows``, ``usable`` and ``rms_error`` for the shard's record.

        ``rms_error``: embedding → root mean square of the packing error, relative to the values'.
        """
        errors = {name: _rms(sums) for name, sums in self.sums.items()}
        return {"rows": len(self.order), "usable": self.usable, "rms_error": errors}


def _rms(sums: Sequence[PackingSums]) -> float:
    signal = sum(s for s, _ in sums)
    return float((sum(e for _, e in sums) / signal) ** 0.5) if signal else 0.0


def write(rows: Mapping[str, Sequence[Any]], header: Header) -> WrittenShard:
    """Write a shard. The same rows give the same bytes.

    Args:
        rows: Columns. ``key`` and ``caption``. For every resolution, ``pixels_R``: a uint8 array
            [R, R, 3] ([H, W, 3] with shortest side R for full pictures), or None. For every
            embedding, a tensor: [tokens, dim] for a sequence, [dim] for a pooled one. Optionally
            ``source`` and any ``score_NAME``. A :class:`PackedValue` may replace any picture or
            embedding.
        header: The header.

    Raises:
        ValueError: A row has a wrong shape, dtype or value; names its key.
    """
    count = len(rows["key"])
    order, usable = _most_usable_first(rows, header.resolutions)
    packing, at = header.packing, [str(rows["key"][i]) for i in order]
    table: dict[str, pa.Array] = {"key": pa.array(at, pa.string())}
    table["caption"] = pa.array([rows["caption"][i] for i in order], pa.string())
    sources = rows.get("source") or [""] * count
    table["source"] = pa.array([sources[i] for i in order], pa.string())
    for name in sorted(n for n in rows if n.startswith("score_")):
        table[name] = pa.array([rows[name][i] for i in order], pa.float32())

    sums: dict[str, list[PackingSums]] = {}
    for spec in sorted(header.embeddings, key=lambda e: e.kind):  # pooled, then adjacent tokens
        precision = packing.precision if spec.kind == "sequence" else packing.pooled
        values = [rows[spec.name][i] for i in order]
        kept = list(_each(at, spec.name, values, partial(_pack, spec=spec, precision=precision)))
        table[spec.name] = pa.array([v.data for v in kept], pa.large_binary())
        if spec.kind == "sequence":
            table[f"{spec.name}_length"] = pa.array([v.shape[0] for v in values], pa.int32())
        sums[spec.name] = [v.sums for v in kept]

    for side in header.resolutions:
        name, full = pixels_column(side), side in packing.full
        pictures = [rows[name][i] for i in order]
        pack = partial(_picture, side=side, full=full, packing=packing)
        table[name] = pa.array(list(_each(at, name, pictures, pack)), pa.large_binary())
        if full:
            for axis, length in enumerate(("height", "width")):
                sizes = [None if p is None else p.shape[axis] for p in pictures]
                table[f"{name}_{length}"] = pa.array(sizes, pa.int32())

    sink = io.BytesIO()
    pq.write_table(
        pa.table(table, _required(table, header)).replace_schema_metadata(header.to_metadata()),
        sink,
        row_group_size=packing.row_group_rows,
        use_dictionary=["source"],
        data_page_size=_ONE_PAGE,
        write_statistics=False,
        compression={name: _compression(name, header) for name in table},
        write_page_checksum=True,
    )
    return WrittenShard(sink.getvalue(), order, usable, sums)


def _required(table: Mapping[str, pa.Array], header: Header) -> pa.Schema:
    """Sequences are never null. Declared so, Parquet stores them without null markers, in place."""
    sequences = {e.name for e in header.embeddings if e.kind == "sequence"}
    return pa.schema([pa.field(n, a.type, nullable=n not in sequences) for n, a in table.items()])


def _most_usable_first(
    rows: Mapping[str, Sequence[Any]], resolutions: Sequence[int]
) -> tuple[list[int], dict[int, int]]:
    """Order rows so that each stage's rows come first; return the order and rows per stage."""
    count = len(rows["key"])
    available = np.array(
        [[p is not None for p in rows[pixels_column(r)]] for r in resolutions], bool
    )
    order = (
        np.argsort(-available.sum(axis=0), kind="stable") if len(available) else np.arange(count)
    )
    for r, present in zip(resolutions, available, strict=True):
        if not present[order[: present.sum()]].all():
            key = next(rows["key"][i] for i in order if not present[i])
            raise ValueError(
                f"row {key} has no picture of {r}, but one of a stage that fewer rows "
                "have; give every row the pictures of all stages that it is large enough for"
            )
    return order.tolist(), {r: int(p.sum()) for r, p in zip(resolutions, available, strict=True)}


def _each(
    keys: Sequence[str], name: str, values: Sequence[Any], pack: Callable[[Any], Any]
) -> Iterator[Any]:
    for key, value in zip(keys, values, strict=True):
        try:
            yield pack(value)
        except ValueError as error:
            raise ValueError(f"{name} of row {key}: {error}") from error


def _pack(values: Tensor | PackedValue, spec: EmbeddingSpec, precision: str) -> PackedValue:
    shape = tuple(values.shape)
    if len(shape) != (2 if spec.kind == "sequence" else 1) or shape[-1] != spec.dim:
        raise ValueError(f"expected a {spec.kind} of width {spec.dim}, got shape {list(shape)}")
    if isinstance(values, PackedValue):
        return values
    data = columns.packed(values, precision)
    raw = np.frombuffer(bytearray(data), np.uint8)
    width = columns.token_bytes(spec.dim, precision)
    kept = columns.unpacked(raw.reshape(*values.shape[:-1], width), precision).double()
    exact = values.double()
    return PackedValue(
        data, shape, (float(exact.square().sum()), float((kept - exact).square().sum()))
    )


def _picture(
    pixels: Bytes | PackedValue | None, side: int, full: bool, packing: Packing
) -> bytes | None:
    if pixels is None:
        return None
    height, width, channels = pixels.shape
    fits = min(height, width) == side and (full or height == width)
    dtype = np.uint8 if isinstance(pixels, PackedValue) else pixels.dtype
    if not fits or channels != 3 or dtype != np.uint8:
        expected = f"a shortest side of {side}" if full else f"{side}×{side}"
        raise ValueError(f"expected {expected} in RGB and uint8, got {pixels.shape} {dtype}")
    if isinstance(pixels, PackedValue):
        return pixels.data
    return columns.encoded(pixels, packing.pictures, packing.jpeg_quality)


def _compression(name: str, header: Header) -> str:
    """Codec of a column. PNG and JPEG are compressed already, embeddings hardly compress."""
    if name in {pixels_column(r) for r in header.resolutions}:
        return "none"
    if name in {e.name for e in header.embeddings}:
        return "zstd" if header.packing.zstd else "none"
    return "zstd"
