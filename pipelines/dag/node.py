"""One step of a pipeline, as the plan sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Amount = Mapping[str, float]
"""Of what nodes need at once: ``cpus``, ``gpus``, or the groups of a cluster. Of others: none."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """A finished node of another plan, whose result is read."""

    folder: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Node:
    """One step to run: what it is, what it reads, what determines its result, what it needs."""

    kind: str
    name: str
    """Within its kind: ``base/E1_1``, ``validation``."""

    settings: Mapping[str, Any]
    """What determines the result, apart from the inputs: part of the fingerprint."""

    inputs: Mapping[str, str] = field(default_factory=dict)
    """Role → id of the node read."""

    given: Mapping[str, Given] = field(default_factory=dict)
    """Role → result of another plan's: part of the fingerprint too."""

    observes: Mapping[str, str] = field(default_factory=dict)
    """Like inputs, but only watched (validation data): not part of the fingerprint."""

    runtime: Mapping[str, Any] = field(default_factory=dict)
    """How it is done (cadence of logs and checkpoints): not part of the fingerprint."""

    cpus: int = 1
    gpus: float = 0
    """Of all its processes, which start together or not at all."""

    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the machines it runs on, as Ray selects them."""

    priority: int = 0

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.name}" if self.name else self.kind

    @property
    def need(self) -> Amount:
        return {"cpus": self.cpus, "gpus": self.gpus}

    @property
    def needs(self) -> list[str]:
        """Ids of the nodes that must be done first."""
        return sorted({*self.inputs.values(), *self.observes.values()})
