"""Parquet files: each table row is one pair. Damage costs only the row group that it is in."""

from __future__ import annotations

from functools import partial
from typing import Any

from pipelines.data.captions import as_list
from pipelines.data.files import File, Location
from pipelines.data.formats.shard import RawRow, RawRows, SourceShard, caption_fields
from pipelines.data.rows import Reason, RejectedRow
from pipelines.spec.data import Source
from pipelines.store import remote

BATCH_ROWS = 16  # pictures of some MB each
BUFFER_BYTES = 2**20


def check_columns(source: Source, location: Location, files: list[File]) -> None:
    """Check the spec's column names against the files, up to the first file that has rows.

    Raises:
        ValueError: A column is missing or duplicated, no file can be read, or no file has a row.
    """
    rows = None
    for file in files:
        found = remote.attempt(partial(footer_of, location, file), location.full(file.path))
        if found is None:
            continue
        names, rows = found
        if absent := missing_column(source, names):
            raise ValueError(
                f"{location.full(file.path)} has no column {absent!r}, only {', '.join(names)}; "
                "name yours with `image:`, `caption:`, `key:` and `scores:` beside `path:`"
            )
        if twice := duplicate_column(source, names):
            raise ValueError(
                f"{location.full(file.path)} has two columns {twice!r}; rename or drop one of them"
            )
        if rows:
            return
    if rows is not None:
        raise ValueError(
            f"the Parquet files of {location.folder} hold no row; set `path:` to a folder "
            "with Parquet files that have rows"
        )
    raise ValueError(
        f"{location.folder} holds no readable Parquet file: {files[0].path} is damaged or cut short"
        + (f", and so are {len(files) - 1} more" if len(files) > 1 else "")
        + "; copy the data set again"
    )


def footer_of(location: Location, file: File) -> tuple[list[str], int] | None:
    """A file's column names and number of rows; None if it is damaged."""
    with ErrorTrackingFile(location.open(file.path)) as handle:
        try:
            found = open_parquet(handle, location)
            return found.schema_arrow.names, found.metadata.num_rows
        except handle.damage_errors():
            handle.reraise()
            return None


def missing_column(source: Source, names: list[str]) -> str | None:
    """A column that the spec names and the file lacks, if any."""
    if not set(caption_fields(source)) & set(names):
        return source.caption
    asked = [source.image, *source.scores, *([source.key] if source.key else [])]
    return next((name for name in asked if name not in names), None)


def duplicate_column(source: Source, names: list[str]) -> str | None:
    """A column to read that appears twice, as after a join, if any."""
    return next((name for name in columns_to_read(source, names) if names.count(name) > 1), None)


def columns_to_read(source: Source, names: list[str]) -> list[str]:
    """The columns to read, picture first, then caption. The file must lack none."""
    caption = next(name for name in caption_fields(source) if name in names)
    key = source.key or ("key" if "key" in names else None)
    return [*dict.fromkeys([source.image, caption, *source.scores, *([key] if key else [])])]


def read(source: Source, shard: SourceShard) -> RawRows:
    """The rows of a Parquet file; a damaged row group becomes one rejected row."""
    with ErrorTrackingFile(shard.location.open(shard.path)) as handle:
        try:
            file = open_parquet(handle, shard.location)
            names = file.schema_arrow.names
        except handle.damage_errors() as error:
            handle.reraise()
            yield RejectedRow(shard.name, shard.path, Reason.FILE_BROKEN, str(error)[:200])
            return
        if absent := missing_column(source, names):
            yield RejectedRow(shard.name, shard.path, Reason.COLUMN_MISSING, absent)
            return
        if twice := duplicate_column(source, names):
            yield RejectedRow(shard.name, shard.path, Reason.COLUMN_REPEATED, twice)
            return
        columns = columns_to_read(source, names)
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
                        yield RawRow(
                            key=cells[key] if key else f"{shard.name}-{row:08d}",
                            source=shard.path,
                            image=image_of(cells[source.image]),
                            captions=as_list(cells[caption]),
                            scores={name: cells[name] for name in source.scores},
                        )
                        row += 1
            except handle.damage_errors() as error:
                handle.reraise()
                detail = f"rows {row} to {end - 1}: {error}"[:200]
                yield RejectedRow(f"{shard.name}-{row:08d}", shard.path, Reason.FILE_BROKEN, detail)
            start = end


def image_of(cell: Any) -> Any:
    """The bytes or path in a cell; Hugging Face writes ``{bytes, path}``, of which one may be
    null."""
    if isinstance(cell, dict) and cell.keys() <= {"bytes", "path"}:
        return cell.get("path") if cell.get("bytes") is None else cell["bytes"]
    return cell


def value_of(scalar: Any) -> Any:
    """A cell as a Python value. Bytes of a string that are not UTF-8 become lone surrogates."""
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


def open_parquet(handle: ErrorTrackingFile, location: Location) -> Any:
    """Open a file: streamed from disk; from a bucket, each row group is fetched in few requests."""
    import pyarrow.parquet as pq

    if location.is_local:
        return pq.ParquetFile(handle, buffer_size=BUFFER_BYTES, pre_buffer=False)
    return pq.ParquetFile(handle, pre_buffer=True)


class ErrorTrackingFile:
    """A file that tells read failures apart from damaged content.

    Arrow raises OSError for both. Only damaged content may be quarantined; a lost connection is
    raised, so that the read is retried.
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

    def reraise(self) -> None:
        """Raise the read failure, if there was one."""
        if self.failure:
            raise self.failure

    @staticmethod
    def damage_errors() -> tuple[type[Exception], ...]:
        """What Arrow raises on damaged content (and on read failures)."""
        import pyarrow as pa

        return (pa.ArrowException, OSError)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.handle, name)

    def __enter__(self) -> ErrorTrackingFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.handle.close()
