"""All verbs: importing this module adds them to the command."""

from pipelines.cli import (
    averages,
    collecting,
    datasets,
    drawing,
    evaluating,
    exporting,
    jobs,
    models,
    planning,
    running,
    schedules,
    serving,
    start,
    studies,
)
from pipelines.cli.app import app

__all__ = [
    "app",
    "averages",
    "collecting",
    "datasets",
    "drawing",
    "evaluating",
    "exporting",
    "jobs",
    "models",
    "planning",
    "running",
    "schedules",
    "serving",
    "start",
    "studies",
]
