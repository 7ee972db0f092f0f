"""What is told of a drawing while it goes on, and which of its pictures are still wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Pictures = np.ndarray[Any, np.dtype[np.uint8]]
"""Pictures [N, R, R, 3]."""


class Abandoned(Exception):
    """No picture of a batch is wanted any more."""


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """A step of sampling, done for all pictures of a batch that are still wanted."""

    stage: str
    step: int
    """From 0."""

    steps: int
    sigma: float
    """Noise level that the step started from."""

    expert: str
    """Expert that served this noise level."""

    seconds: float
    """Of the step, from the end of the one before."""

    pictures: Callable[[], Pictures]
    """The pictures as the expert takes them to be, uint8 [N, R, R, 3] for all N pictures of the
    batch; those no longer wanted hold anything. It may be called amid the step's callback alone."""


class Watch(Protocol):
    """Follows a drawing. Its methods are called in the thread that draws."""

    def step(self, done: StepDone) -> None:
        """A step is done."""
        ...

    def wanted(self) -> Sequence[bool]:
        """For every picture of the batch, whether to go on with it; asked before every step.

        A picture that is no longer wanted costs nothing from then on; if none is, the drawing ends
        with :class:`Abandoned`.
        """
        ...
