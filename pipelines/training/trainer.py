"""Ray Train, without what it would start for Ray Data."""

from __future__ import annotations

from typing import Any

from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class RayTrainer(DataParallelTrainer):
    """Workers that read for themselves: the process that would hand out data sets is left out."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [c for c in callbacks if type(c).__name__ != "DatasetsCallback"]
