"""The record of a quality–alignment curve in MLflow."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.dag.plan import digest
from pipelines.evaluation.curve import Curve, Line
from pipelines.lineage.limits import PARAM_CHARACTERS, whole_lines
from pipelines.lineage.sync import registry_uri
from pipelines.lineage.writer import Writer
from pipelines.store.artifacts import Store

FINGERPRINT = "ediffi.fingerprint"


def record(curve: Curve, folder: Path, store: Store, pipeline: str) -> str:
    """Record a curve as a run of its pipeline's experiment; a curve has one run only.

    Metrics are named ``LINE/MEASURE``, with the number of the point as their step, so that MLflow
    plots them. The report's files are artifacts.

    Args:
        folder: The report.
        pipeline: Name of the experiment.

    Returns:
        Address of MLflow. Raises what MLflow raises.
    """
    uri = registry_uri(store, pipeline)
    writer = Writer(uri, pipeline, "", store)
    client = writer.client
    run = _run_of(client, writer.experiment, curve)
    _log(writer, run, curve)
    for file in sorted(folder.iterdir()):
        if file.suffix in (".png", ".json", ".md"):
            client.log_artifact(run, str(file), artifact_path="curve")
    if (page := folder / "README.md").is_file():
        client.set_tag(run, "mlflow.note.content", description(page.read_text()))
    client.set_terminated(run, "FINISHED")
    return uri


def _run_of(client: Any, experiment: str, curve: Curve) -> str:
    from mlflow.entities import Param

    marks = [[line.label, *(p.fingerprint for p in line.points)] for line in curve.lines]
    fingerprint = digest([*marks, curve.alignment, curve.distance])
    known = client.search_runs([experiment], f"tags.`{FINGERPRINT}` = '{fingerprint}'")
    if known:
        run: str = known[0].info.run_id
        return run
    tags = {"ediffi.kind": "curve", FINGERPRINT: fingerprint, "ediffi.state": "done"}
    made = client.create_run(experiment, tags=tags, run_name=curve.title)
    about = {"command": curve.command, **curve.about}
    params = [Param(key, str(value)[:PARAM_CHARACTERS]) for key, value in about.items()]
    client.log_batch(made.info.run_id, params=params)
    return str(made.info.run_id)


def _log(writer: Writer, run: str, curve: Curve) -> None:
    # MLflow keeps a point once for the same time.
    time_ms = writer.client.get_run(run).info.start_time
    values = ((k, v, step) for line in curve.lines for k, v, step in _values(line, curve.along))
    writer.log_points(run, [(key, value, time_ms, step) for key, value, step in values])


def _values(line: Line, along: str | None) -> Iterator[tuple[str, float, int]]:
    """Name, value and number of the point."""
    name = metric_name(line.label)
    for step, point in enumerate(line.points):
        at = point.setting.get(along or "")
        if isinstance(at, int | float):
            yield f"{name}/{along}", float(at), step
        for measure, value in point.measures.items():
            key = f"{name}/{metric_name(measure)}"
            yield key, value.value, step
            if math.isfinite(value.high - value.low):
                yield f"{key}_low", value.low, step
                yield f"{key}_high", value.high, step


def description(page: str) -> str:
    """The report's page without its picture, which is an artifact."""
    kept = [line for line in page.splitlines() if not line.startswith("![")]
    return whole_lines("\n".join(kept))


def metric_name(text: str) -> str:
    """A text with the characters that MLflow allows in names: others become ``_``."""
    return re.sub(r"[^\w\-. /:]", "_", text)
