"""The record of a study's report in MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.lineage.address import to_keep, tracking_uri
from pipelines.lineage.curves import description, metric_name
from pipelines.lineage.pages import every
from pipelines.lineage.writer import Writer
from pipelines.store.artifacts import Store
from pipelines.studies.claims import Finding

KIND = "study report"


def record(
    findings: Sequence[Finding], folder: Path, store: Store, study: str, tracking: str | None
) -> str:
    """Record a report as a run of the study's experiment; a later report replaces it.

    Metrics are each claim's gain with its interval; the report's files are artifacts, and its
    Markdown describes the run.

    Args:
        folder: The report.
        study: Name of the study and of the experiment.
        tracking: The spec's ``tracking:``.

    Returns:
        Address of MLflow. Raises what MLflow raises.
    """
    uri = tracking_uri(tracking, store)
    writer = Writer(uri, study, "", store)
    client = writer.client
    where = f"tags.`ediffi.kind` = '{KIND}'"
    for old in list(every(client.search_runs, [writer.experiment], where)):
        client.delete_run(old.info.run_id)
    tags = {"ediffi.kind": KIND, "ediffi.state": "done"}
    run = client.create_run(writer.experiment, tags=tags, run_name=f"{study}: report")
    name = run.info.run_id
    values = [(k, v) for finding in findings for k, v in _values(finding)]
    writer.log_points(name, [(k, v, run.info.start_time, 0) for k, v in values])
    client.log_artifacts(name, str(folder), artifact_path="report")
    client.set_tag(name, "mlflow.note.content", description((folder / "report.md").read_text()))
    client.set_terminated(name, "FINISHED")
    return to_keep(uri)


def _values(finding: Finding) -> list[tuple[str, float]]:
    at = "/".join([finding.name, *finding.at.values()])
    effect: Any = finding.effect
    values = {"supported": float(finding.verdict == "supported")}
    if finding.p_adjusted is not None:
        values["p_adjusted"] = finding.p_adjusted
    if effect is not None:
        values["gain"] = effect.mean
        if effect.interval is not None:
            values["gain_low"], values["gain_high"] = effect.interval
    return [(metric_name(f"{at}/{k}"), float(v)) for k, v in values.items()]
