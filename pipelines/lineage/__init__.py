"""The record in MLflow: nested runs that mirror the expert tree, curves, pictures, the registry.

What happens is written to a spool on disk, and a thread delivers it from there in its own time:
MLflow slow or away delays nothing and loses nothing. The store is the truth all the same.
"""

from pipelines.lineage.address import folder, quiet_mlflow, tracking_uri
from pipelines.lineage.record import Lineage

__all__ = ["Lineage", "folder", "quiet_mlflow", "tracking_uri"]
