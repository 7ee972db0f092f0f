"""Parquet: one row a row. Read batch by batch; a damaged part costs its row group, no more."""

from __future__ import annotations

from functools import partial
from typing import Any

from pipelines.data.captions import listed
from pipelines.data.files import File, Place
from pipelines.data.formats.shard import Findings, Found, SourceShard, caption_fields
from pipelines.data.rows import Bad, Reason
from pipelines.spec.data import Source
from pipelines.store import remote

BATCH_ROWS = 16  # pictures of some MB each
BUFFER_BYTES = 2**20


def check_columns(source: Source, place: Place, files: list[File]) -> None:
    """Holds the settings against the files, up to the first that has rows.

    Raises:
        ValueError: It lacks a column or has one twice, no file can be read, or none has a row.
    """
    rows = None
    for file in files:
        found = remote.attempt(partial(footer_of, place, file), place.full(file.path))
        if found is None:
            continue
        names, rows = found
        if absent := missing(source, names):
            raise ValueError(
                f"{place.full(file.path)} has no column {absent!r}, only {', '.join(names)}; name "
                "yours with `image:`, `caption:`, `key:` and `scores:` beside `path:`"
            )
        if twice := repeated(source, names):
            raise ValueError(
                f"{place.full(file.path)} has two columns {twice!r}; rename or drop one of them"
            )
        if rows:
            return
    if rows is not None:
        raise ValueError(
            f"the Parquet files of {place.folder} hold no row; point `path:` at a folder of which "
            "a file does"
        )
    raise ValueError(
        f"{place.folder} holds no readable Parquet file: {files[0].path} is damaged or cut short"
        + (f", and so are {len(files) - 1} more" if len(files) > 1 else "")
        + "; copy the data set anew"
    )


def footer_of(place: Place, file: File) -> tuple[list[str], int] | None:
    """A file's columns and its number of rows; None if it is damaged."""
    with Watched(place.open(file.path)) as handle:
        try:
            found = open_parquet(handle, place)
            return found.schema_arrow.names, found.metadata.num_rows
        except handle.damage():
            handle.check()
            return None


def missing(source: Source, names: list[str]) -> str | None:
    """A column that the settings ask for and the file lacks."""
    if not set(caption_fields(source)) & set(names):
        return source.caption
    asked = [source.image, *source.scores, *([source.key] if source.key else [])]
    return next((name for name in asked if name not in names), None)


def repeated(source: Source, names: list[str]) -> str | None:
    """A column that is read and is there twice, as a join leaves it."""
    return next((name for name in columns_of(source, names) if names.count(name) > 1), None)


def columns_of(source: Source, names: list[str]) -> list[str]:
    """Those that are read, of a file that lacks none: the picture first, then the caption."""
    caption = next(name for name in caption_fields(source) if name in names)
    key = source.key or ("key" if "key" in names else None)
    return [*dict.fromkeys([source.image, caption, *source.scores, *([key] if key else [])])]


def read(source: Source, shard: SourceShard) -> Findings:
    with Watched(shard.place.open(shard.path)) as handle:
        try:
            file = open_parquet(handle, shard.place)
            names = file.schema_arrow.names
        except handle.damage() as error:
            handle.check()
            yield Bad(shard.name, shard.path, Reason.FILE_BROKEN, str(error)[:200])
            return
        if absent := missing(source, names):
            yield Bad(shard.name, shard.path, Reason.COLUMN_MISSING, absent)
            return
        if twice := repeated(source, names):
            yield Bad(shard.name, shard.path, Reason.COLUMN_REPEATED, twice)
            return
        columns = columns_of(source, names)
        caption = next(name for name in caption_fields(source) if name in names)
        key = source.key or ("key" if "key" in names else None)
        start = 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            row = start
            try:
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                    for i in range(batch.num_rows):
                        cells = {name: value_of(batch.column(name)[i]) for name in columns}
                        yield Found(
                            key=cells[key] if key else f"{shard.name}-{row:08d}",
                            source=shard.path,
                            image=image_of(cells[source.image]),
                            captions=listed(cells[caption]),
                            scores={name: cells[name] for name in source.scores},
                        )
                        row += 1
            except handle.damage() as error:
                handle.check()
                detail = f"rows {row} to {end - 1}: {error}"[:200]
                yield Bad(f"{shard.name}-{row:08d}", shard.path, Reason.FILE_BROKEN, detail)
            start = end


def image_of(cell: Any) -> Any:
    """Bytes or a path; Hugging Face writes both, ``{bytes, path}``, either may be null."""
    if isinstance(cell, dict) and cell.keys() <= {"bytes", "path"}:
        return cell.get("path") if cell.get("bytes") is None else cell["bytes"]
    return cell


def value_of(scalar: Any) -> Any:
    """A cell as Python has it, but text that is no UTF-8 with lone surrogates for the bad bytes."""
    import pyarrow as pa

    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.DictionaryScalar | pa.ExtensionScalar):
        return value_of(scalar.value)
    if isinstance(scalar, pa.StructScalar):
        return {name: value_of(value) for name, value in scalar.items()}
    if isinstance(scalar, pa.ListScalar):
        return [value_of(value) for value in scalar.values]
    if isinstance(scalar, pa.StringScalar):
        return scalar.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
    return scalar.as_py()


def open_parquet(handle: Watched, place: Place) -> Any:
    """Streams from disk; a bucket's row group is fetched in few requests instead."""
    import pyarrow.parquet as pq

    if place.is_local:
        return pq.ParquetFile(handle, buffer_size=BUFFER_BYTES, pre_buffer=False)
    return pq.ParquetFile(handle, pre_buffer=True)


class Watched:
    """A file whose failures are told from those of its content.

    Arrow raises OSError for both, but only a damaged file is to be quarantined: a connection that
    broke is raised, to be tried again.
    """

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.failure: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            data: bytes = self.handle.read(size)
        except Exception as error:
            self.failure = error
            raise
        return data

    def check(self) -> None:
        """Raises what reading raised, if it did."""
        if self.failure:
            raise self.failure

    @staticmethod
    def damage() -> tuple[type[Exception], ...]:
        import pyarrow as pa

        return (pa.ArrowException, OSError)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.handle, name)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *error: object) -> None:
        self.handle.close()
