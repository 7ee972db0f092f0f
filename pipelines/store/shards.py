"""A shard of embedded pairs: its Parquet schema (format 3), its writer, and its header.

| column | of a row |
|---|---|
| ``key`` ``caption`` ``source`` | strings; the source is where the pair came from |
| ``score_NAME`` | float32, what a filter may go by |
| a pooled embedding's name | its bytes |
| a sequence's name, ``NAME_length`` | its tokens' bytes, as many as it has, and how many |
| ``pixels_R`` | the picture for the stage of side R; null where it is too small for that stage |
| ``pixels_R_height`` ``_width`` | of full pictures |

Values are raw bytes, as Arrow's lists are 6–9 times slower to read; what they mean is in the
header, JSON in the file's metadata. Rows that more stages can use come first, so a stage's rows
are the first ``usable[R]``, and row groups are small: the unit in which training shuffles.
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
_ONE_PAGE = 2**30  # bytes: a row group's column in one piece, which can be read where it stands


def pixels_at(resolution: int) -> str:
    """The column of a stage's pictures; a stage reads its own alone."""
    return f"pixels_{resolution}"


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How values are kept: what they cost in bytes and in precision."""

    precision: Literal["fp16", "bf16", "int8"] = "fp16"
    """Of token sequences. int8 has a scale for every token."""

    pooled: Literal["fp16", "fp32"] = "fp16"
    """Precision of pooled vectors."""

    pictures: Literal["raw", "png", "jpeg"] = "raw"

    jpeg_quality: int = 95
    """Chroma is kept whole."""

    full: tuple[int, ...] = ()
    """Stages that train on crops: their picture is whole, its shortest side the resolution."""

    row_group_rows: int = 32
    """What is read at once; a 200 KB row makes this 6 MB, a good request to a bucket."""

    zstd: bool = False
    """Compress the sequences: a fifth smaller in fp16, and a third more time to read."""

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
    """What is true of every row, and of every shard of a data-set version."""

    resolutions: tuple[int, ...]
    embeddings: tuple[EmbeddingSpec, ...]
    encoders: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Encoder → what tells it from others: ``name``, ``sha256`` of its weights, ``dtype``."""

    packing: Packing = Packing()

    def __post_init__(self) -> None:
        if unknown := set(self.packing.full) - set(self.resolutions):
            raise ValueError(f"full pictures of {sorted(unknown)}, which no stage has")

    def to_metadata(self) -> dict[bytes, bytes]:
        return {_META: json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True).encode()}

    @staticmethod
    def from_metadata(metadata: Mapping[bytes, bytes] | None) -> Header:
        """ValueError if it is another program's file, or another format's."""
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
        """What a stage reads of a row group; ValueError if it has no pictures here."""
        if resolution not in self.resolutions:
            raise ValueError(
                f"has pictures of {', '.join(map(str, self.resolutions))}, none of {resolution}; "
                "add it to the resolutions and embed again"
            )
        names = [e.name for e in self.embeddings] + [pixels_at(resolution)]
        if resolution in self.packing.full:
            names += [f"{pixels_at(resolution)}_{side}" for side in ("height", "width")]
        return names


Sums = tuple[float, float]
"""Of a packed embedding: its sum of squares, and that of what packing changed."""


@dataclass(frozen=True)
class Kept:
    """A value as a shard holds it, packed, in place of a tensor or an array."""

    data: bytes
    shape: tuple[int, ...]
    """Of the value before it was packed."""

    sums: Sums = (0.0, 0.0)
    """Of an embedding."""


@dataclass(frozen=True)
class Written:
    """What :func:`write` made of some rows."""

    data: bytes
    order: list[int]
    """The rows' numbers, in the order in which the shard has them."""

    usable: dict[int, int]
    """Resolution → how many rows it has."""

    sums: dict[str, list[Sums]]
    """Embedding → of each row, in the shard's order."""

    @property
    def facts(self) -> dict[str, Any]:
        """``rows``, ``usable``, and ``rms_error``: embedding → what packing changed, relative to
        the root mean square."""
        errors = {name: _rms(sums) for name, sums in self.sums.items()}
        return {"rows": len(self.order), "usable": self.usable, "rms_error": errors}


def _rms(sums: Sequence[Sums]) -> float:
    signal = sum(s for s, _ in sums)
    return float((sum(e for _, e in sums) / signal) ** 0.5) if signal else 0.0


def write(rows: Mapping[str, Sequence[Any]], header: Header) -> Written:
    """A shard's bytes, the same for the same rows, and a summary of them.

    Args:
        rows: ``key``, ``caption``; a uint8 array [R, R, 3] or None as ``pixels_R`` for every
            resolution ([H, W, 3] with shortest side R for full ones); a tensor for every
            embedding, [tokens, dim] of a sequence, [dim] of a pooled one; and, if at hand,
            ``source`` and any ``score_NAME``. Any picture or embedding may be :class:`Kept`.

    Raises:
        ValueError: A row is not what it must be; names its key.
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

    sums: dict[str, list[Sums]] = {}
    for spec in sorted(header.embeddings, key=lambda e: e.kind):  # pooled first, tokens together
        precision = packing.precision if spec.kind == "sequence" else packing.pooled
        values = [rows[spec.name][i] for i in order]
        kept = list(_each(at, spec.name, values, partial(_pack, spec=spec, precision=precision)))
        table[spec.name] = pa.array([v.data for v in kept], pa.large_binary())
        if spec.kind == "sequence":
            table[f"{spec.name}_length"] = pa.array([v.shape[0] for v in values], pa.int32())
        sums[spec.name] = [v.sums for v in kept]

    for side in header.resolutions:
        name, full = pixels_at(side), side in packing.full
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
    return Written(sink.getvalue(), order, usable, sums)


def _required(table: Mapping[str, pa.Array], header: Header) -> pa.Schema:
    """Sequences are in every row: without marks of what is null, their bytes stand plainly."""
    sequences = {e.name for e in header.embeddings if e.kind == "sequence"}
    return pa.schema([pa.field(n, a.type, nullable=n not in sequences) for n, a in table.items()])


def _most_usable_first(
    rows: Mapping[str, Sequence[Any]], resolutions: Sequence[int]
) -> tuple[list[int], dict[int, int]]:
    """The order of rows in which every stage's are the first, and how many each stage has."""
    count = len(rows["key"])
    there = np.array([[p is not None for p in rows[pixels_at(r)]] for r in resolutions], bool)
    order = np.argsort(-there.sum(axis=0), kind="stable") if len(there) else np.arange(count)
    for r, present in zip(resolutions, there, strict=True):
        if not present[order[: present.sum()]].all():
            key = next(rows["key"][i] for i in order if not present[i])
            raise ValueError(
                f"row {key} has no picture of {r} though it has one of another stage that fewer "
                "rows have; a picture that is large enough for a stage is so for all smaller ones"
            )
    return order.tolist(), {r: int(p.sum()) for r, p in zip(resolutions, there, strict=True)}


def _each(
    keys: Sequence[str], name: str, values: Sequence[Any], pack: Callable[[Any], Any]
) -> Iterator[Any]:
    for key, value in zip(keys, values, strict=True):
        try:
            yield pack(value)
        except ValueError as error:
            raise ValueError(f"{name} of row {key}: {error}") from error


def _pack(values: Tensor | Kept, spec: EmbeddingSpec, precision: str) -> Kept:
    shape = tuple(values.shape)
    if len(shape) != (2 if spec.kind == "sequence" else 1) or shape[-1] != spec.dim:
        raise ValueError(f"a {spec.kind} of width {spec.dim} is due, got {list(shape)}")
    if isinstance(values, Kept):
        return values
    data = columns.packed(values, precision)
    raw = np.frombuffer(bytearray(data), np.uint8)
    width = columns.token_bytes(spec.dim, precision)
    kept = columns.unpacked(raw.reshape(*values.shape[:-1], width), precision).double()
    exact = values.double()
    return Kept(data, shape, (float(exact.square().sum()), float((kept - exact).square().sum())))


def _picture(pixels: Bytes | Kept | None, side: int, full: bool, packing: Packing) -> bytes | None:
    if pixels is None:
        return None
    height, width, channels = pixels.shape
    fits = min(height, width) == side and (full or height == width)
    dtype = np.uint8 if isinstance(pixels, Kept) else pixels.dtype
    if not fits or channels != 3 or dtype != np.uint8:
        due = f"a shortest side of {side}" if full else f"{side}×{side}"
        raise ValueError(f"{due} in RGB and uint8 is due, got {pixels.shape} {dtype}")
    if isinstance(pixels, Kept):
        return pixels.data
    return columns.encoded(pixels, packing.pictures, packing.jpeg_quality)


def _compression(name: str, header: Header) -> str:
    """PNG and JPEG are compressed already, embeddings hardly can be, and raw pictures are raw."""
    if name in {pixels_at(r) for r in header.resolutions}:
        return "none"
    if name in {e.name for e in header.embeddings}:
        return "zstd" if header.packing.zstd else "none"
    return "zstd"
