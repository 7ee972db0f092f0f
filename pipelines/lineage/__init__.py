"""The record in MLflow: nested runs that mirror the expert tree, curves, images, the registry.

Events are appended to a spool file on disk, and a thread delivers them to MLflow from there. A slow
or unreachable MLflow therefore neither delays the run nor loses events. The record is a copy: what
counts is in the store.
"""

from pipelines.lineage.address import local_folder, quiet_mlflow, tracking_uri
from pipelines.lineage.record import Lineage

__all__ = ["Lineage", "local_folder", "quiet_mlflow", "tracking_uri"]
