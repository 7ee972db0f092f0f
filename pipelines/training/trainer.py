"""Ray Train's trainer without its Ray Data process."""

from __future__ import annotations

from typing import Any

from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class RayTrainer(DataParallelTrainer):
    """Leaves out the callback that distributes data sets: workers read their shards themselves."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [c for c in callbacks if type(c).__name__ != "DatasetsCallback"]
