"""How long ago a file was written, by the clock of the store alone: no host's clock matters."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from pathlib import Path

from pipelines.store.artifacts import Store
from pipelines.store.compare_and_swap import has_conditions
from pipelines.store.remote import attempt
from pipelines.store.scratch import folder_time


def age_s(store: Store, path: str) -> float | None:
    """Seconds since a file was written; None if it does not exist or the store does not say."""
    full = store.full(path)
    if store.is_local:
        try:
            written = Path(full).stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return None
        return max(0.0, folder_time(Path(full).parent) - written)
    if not has_conditions(store):
        return None
    bucket, key, _ = store.fs.split_path(full)
    try:
        head = attempt(lambda: store.fs.call_s3("head_object", Bucket=bucket, Key=key), full)
    except FileNotFoundError:
        return None
    date = head["ResponseMetadata"]["HTTPHeaders"].get("date")
    if date is None:
        return None
    now = parsedate_to_datetime(date)
    return max(0.0, float((now - head["LastModified"]).total_seconds()))
