"""The function that Ray Train calls in each worker of a training node."""

from __future__ import annotations

from typing import Any


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Train the node to its end.

    Args:
        config: ``ctx``, ``settings`` and ``inputs`` of the node.

    Returns:
        ``files``, ``metrics``, ``info`` and ``scratch`` of the node's result.

    Raises:
        ValueError: A mistake in the user's settings or data.
        Preempted: The worker was asked to stop, and has saved its state.
        Stalled: The workers lost contact with each other.
    """
    from pipelines.training.build import TrainingSetup
    from pipelines.training.loop import Trainer

    return Trainer(TrainingSetup(config["ctx"], config["settings"], config["inputs"])).train()
