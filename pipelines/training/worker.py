"""What Ray Train calls in each worker of a training node."""

from __future__ import annotations

from typing import Any


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Trains the node to its end; → what its step gives back.

    Raises:
        ValueError: A mistake of the user's, in words.
        Preempted: The worker was asked to leave, and has saved.
        Stalled: The workers lost each other.
    """
    from pipelines.training.build import Parts
    from pipelines.training.loop import Trainer

    return Trainer(Parts(config["ctx"], config["settings"], config["inputs"])).train()
