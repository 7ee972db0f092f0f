"""One step of a pipeline, as the plan sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

Resources = Mapping[str, float]
"""Resource → amount: ``cpus``, ``gpus``, or a cluster's groups. A missing resource counts as 0."""


@dataclass(frozen=True, kw_only=True)
class ExternalResult:
    """The stored result of a finished node from another plan, which a node of this plan reads."""

    folder: str
    """In the store: ``nodes/<id>-<fingerprint>``."""

    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Node:
    """One step to run: its kind and name, what it reads, its settings and its resources."""

    kind: str
    """Names the module in :mod:`pipelines.steps` that runs it: ``train``, ``evaluate``."""

    name: str
    """Unique within its kind: ``base/E1_1``, ``validation``."""

    settings: Mapping[str, Any]
    """Everything except the inputs that determines the result: part of the fingerprint."""

    inputs: Mapping[str, str] = field(default_factory=dict)
    """Role → id of the node whose result is read: part of the fingerprint."""

    external: Mapping[str, ExternalResult] = field(default_factory=dict)
    """Role → result of another plan's node: part of the fingerprint."""

    unhashed_inputs: Mapping[str, str] = field(default_factory=dict)
    """Role → id of a node that is read but does not change the result (validation data): not part
    of the fingerprint."""

    runtime: Mapping[str, Any] = field(default_factory=dict)
    """Settings that do not change the result (how often to log and save): not part of the
    fingerprint."""

    cpus: int = 1
    """CPUs of all the node's processes together; they start together or not at all."""

    gpus: float = 0
    """GPUs of all the node's processes together."""

    labels: Mapping[str, str] = field(default_factory=dict)
    """Ray node labels that the machines must have."""

    priority: int = 0
    """Of the nodes that are ready, higher priorities start first."""

    cell: str = ""
    """In a plan of several pipelines, the one that the node stands in; empty in others. Not part of
    the fingerprint."""

    @property
    def path(self) -> str:
        """Unique in a pipeline, and where the store keeps its results: ``train/base/E1_1``."""
        return f"{self.kind}/{self.name}" if self.name else self.kind

    @property
    def id(self) -> str:
        """Unique in the plan: its path, in a plan of several pipelines after ``CELL:``."""
        return f"{self.cell}:{self.path}" if self.cell else self.path

    @property
    def resources(self) -> Resources:
        """CPUs and GPUs that must be free for the node to start."""
        return {"cpus": self.cpus, "gpus": self.gpus}

    @cached_property
    def dependencies(self) -> list[str]:
        """Ids of the nodes that must be done before this one starts."""
        return sorted({*self.inputs.values(), *self.unhashed_inputs.values()})


def path_of(node_id: str) -> str:
    """The node's path, from its id."""
    return node_id.rpartition(":")[2]
