"""The spec's ``adaptive:``: an expert tree that grows where its experts gain most."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.spec.base import LATER
from pipelines.spec.training import Overrides


class Adaptive(Overrides):
    """An expert tree that grows within a budget, in place of a fixed list of experts.

    Both halves of the root are trained first. Then the side whose last expert gained most for its
    images is split again, until the budget, the depth or the gain runs out; the rest of the budget
    trains the complement. All experts are trained alike.
    """

    budget: int = Field(ge=1)
    """Images for all experts below the root together, including the complement. At least twice
    ``images``."""

    images: int = Field(ge=1)
    """Images to train each expert on, a multiple of the batch."""

    depth: int = Field(4, ge=1, le=50)
    """Deepest level of the tree; the root has level 0. The paper's deepest expert, ``E9_511``,
    has level 9."""

    min_gain: float = Field(0.0, ge=0)
    """Minimum relative reduction of the parent's loss on the child's interval, by the lower bound
    of its 95 % confidence interval: 0.01 is 1 %. A side whose last expert gained less is not split
    further."""

    weighting: Annotated[Literal["noise", "sampler"], LATER] = "noise"
    """Weight of a gain when the two sides are compared. ``noise``: the interval's share of p(σ), as
    in the training loss; each level halves it, so chains stay short. ``sampler``: the interval's
    share of the sampler's steps, 34 % for ``E9_511``; allows chains as long as the paper's."""

    cpus: int = Field(1, ge=1)
    """CPUs of each worker."""

    @model_validator(mode="after")
    def enough(self) -> Self:
        if self.budget < 2 * self.images:
            raise ValueError(
                f"the budget of {self.budget} does not pay for the first two experts of "
                f"{self.images} images; write at least {2 * self.images}"
            )
        return self
