"""What draws pictures for many callers, seen from the side of HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipelines.models.metadata import ModelId
from pipelines.models.rows import Row
from pipelines.serving.events import Event
from pipelines.spec.base import Strict


@dataclass(frozen=True, kw_only=True)
class Order:
    """Pictures of one request, validated: all of one model and one last stage."""

    rows: Sequence[Row]
    """A picture each; any may be drawn with those of other orders."""

    model: str | None = None
    """``None`` or the served name for the served model; ``champion`` or ``candidate``."""

    stage: str | None = None
    """Last stage to run; all by default."""

    previews: bool = False
    attention: bool = False
    deadline_s: float = 120.0
    """Seconds from now until the order is given up."""

    tags: dict[str, str] = field(default_factory=dict)
    """For logs, such as a request's id; never its texts."""


class ExpertInfo(Strict):
    """An expert of a stage, from high noise to low."""

    name: str
    sigma: tuple[float, float]
    """Lower and upper end of its interval of noise; the upper may be infinite, given as 1e9."""


class StageInfo(Strict):
    """A stage of a served cascade."""

    name: str
    resolution: int
    experts: list[ExpertInfo]
    """None while the model is not loaded: their σ are in the files of their weights."""

    sampling: dict[str, Any]
    """The ensemble's own settings, as `sampling` of a spec."""


class ModelInfo(Strict):
    """A model that can be asked for."""

    name: str
    """As a request names it."""

    id: ModelId
    aliases: list[str]
    stages: list[StageInfo]
    loaded: bool


class Status(Strict):
    """How an engine is."""

    ready: bool
    waiting: int
    """Pictures in the queue."""

    drawing: int
    """Pictures of the batch at work."""

    models: list[ModelInfo]
    trouble: str | None = None
    """Why a newer model was not switched to, if so."""


class Engine(Protocol):
    """Draws orders; :class:`~pipelines.serving.local.LocalEngine`, or Ray Serve's replicas."""

    def draw(self, order: Order) -> AsyncIterator[Event]:
        """Draw an order.

        Closing the iterator, or cancelling who reads it, takes the order's pictures out of the
        queue and out of the batch at work.

        Yields:
            Events in order of time; one :class:`~pipelines.serving.events.Finished` a picture. A
            picture that is drawn anew, since one of its batch has failed, starts again. Steps may
            be left out for who reads slowly.

        Raises:
            Refused: The model is unknown, the queue is full, the deadline has passed, or what was
                drawn cannot be shown. If one of several pictures fails, this is raised after the
                others are finished.
        """
        ...

    async def status(self) -> Status:
        """How it is now."""
        ...
