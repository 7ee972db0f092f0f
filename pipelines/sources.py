"""What a pipeline reads that no node made, and the identity of its content: data and encoders."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pipelines.data.settings import Source
from pipelines.spec import Spec


def identify_all(spec: Spec) -> dict[str, Any]:
    """The identity of every source that is not made by a node."""
    splits = {"train": spec.data.train, "validation": spec.data.validation}
    found = {split: identify(source) for split, source in splits.items() if source.path}
    if spec.encoders.make:
        return found
    named = {**spec.encoders.model_dump(include={"t5", "clip"}), "scorer": spec.evaluate.clip}
    found["encoders"] = {role: identify_encoder(name) for role, name in named.items() if name}
    return found


def identify_encoder(name: str) -> str:
    """A published model's name, or of a folder what it holds: a moved folder is the same."""
    folder = Path(name)
    if not folder.is_dir():
        return name
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        with file.open("rb") as handle:
            content = hashlib.file_digest(handle, "sha256").hexdigest()
        digest.update(f"{file.relative_to(folder)} {content}\n".encode())
    return f"sha256:{digest.hexdigest()}"


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
