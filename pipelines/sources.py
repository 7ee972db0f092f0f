"""Image–caption Parquet of the user's own: what is there, and the identity of its content."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pipelines.spec import Source, Spec


def identify_all(spec: Spec) -> dict[str, Any]:
    """The identity of every source that is not made by a node."""
    splits = {"train": spec.data.train, "validation": spec.data.validation}
    return {split: identify(source) for split, source in splits.items() if source.path}


def identify(source: Source) -> dict[str, Any]:
    """Names and sha256 of a source's files; ValueError if files or columns are missing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = {}
    for file in parquet_files(str(source.path)):
        try:
            names = pq.read_schema(file).names
        except pa.ArrowInvalid as error:
            raise ValueError(f"{file} is no readable Parquet file ({error})") from error
        for column in (source.image, source.caption):
            if column not in names:
                raise ValueError(
                    f"{file} has no column {column!r}, only {', '.join(names)}; name yours with "
                    "`image:` and `caption:` beside `path:`"
                )
        with file.open("rb") as handle:
            files[file.name] = hashlib.file_digest(handle, "sha256").hexdigest()
    return {"files": files}


def parquet_files(path: str) -> list[Path]:
    """The Parquet files at a path, by name; ValueError if there are none."""
    place = Path(path)
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise ValueError(f"data folder {path} does not exist; set `data.train.path` to one")
    if found := sorted(place.glob("*.parquet")):
        return found
    raise ValueError(f"data folder {path} holds no .parquet file")
