"""Checks of the data that a spec names."""

from __future__ import annotations

from pathlib import Path

from pipelines.executor.doctor.check import Check, Checks, Subject


def paths(subject: Subject) -> Checks:
    """Whether the spec's local data paths exist. Remote ones are not checked."""
    if subject.spec is None:
        return
    data = subject.spec.data
    for split, source in (("train", data.train), ("validation", data.validation)):
        given = [source.path] if isinstance(source.path, str) else source.path or []
        local = [path for path in given if "://" not in path]
        absent = [path for path in local if not Path(path).exists()]
        name = f"data.{split}"
        if absent:
            more = f", nor do {len(absent) - 1} more" if len(absent) > 1 else ""
            remedy = f"set `{name}.path`"
            yield Check(name, "fault", f"{absent[0]} does not exist{more}", remedy)
        elif local:
            more = f" and {len(local) - 1} more" if len(local) > 1 else ""
            yield Check(name, "ok", f"{local[0]}{more} exist{'s' * (len(local) == 1)}")
