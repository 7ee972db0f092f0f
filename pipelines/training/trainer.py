"""Ray Train's trainer without the processes that do nothing here."""

from __future__ import annotations

import os
from typing import Any

from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class RayTrainer(DataParallelTrainer):
    """Leaves out the callback that distributes data sets: workers read their shards themselves.

    On this machine's own Ray it also leaves out the cleaner of placement groups, an actor that asks
    a dashboard whether the training's controller lives. This Ray has none, so the actor would ask
    whichever cluster was started here last with ``ray start``: if that is dead, each training waits
    12 s for an answer; if it lives, it knows no such controller, and the training loses its
    workers.
    """

    def _create_default_callbacks(self) -> list[Any]:
        left_out = {"DatasetsCallback"}
        if not os.environ.get("RAY_ADDRESS"):
            left_out.add("PlacementGroupCleanerCallback")
        callbacks = super()._create_default_callbacks()
        return [c for c in callbacks if type(c).__name__ not in left_out]
