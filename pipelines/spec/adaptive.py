"""The spec's ``adaptive:``: a tree that grows by what its experts gain."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.spec.base import LATER
from pipelines.spec.training import Overrides


class Adaptive(Overrides):
    """A budget instead of a list of experts, who are all trained alike."""

    budget: int = Field(ge=1)
    """Images for all experts below the root, the complement among them."""

    images: int = Field(ge=1)
    """Of each."""

    depth: int = Field(4, ge=1, le=50)
    min_gain: float = Field(0.0, ge=0)
    """What a child must gain on its interval, of its parent's loss there: 0.01 is a hundredth. By
    the lower bound of the confidence interval. A side whose child gained less grows no further."""

    weighting: Annotated[Literal["noise", "sampler"], LATER] = "noise"
    """What a gain counts for when sides are ranked. ``noise``: the interval's share of p(σ), as in
    the training loss; every level of a chain halves it, so chains stay short. ``sampler``: its
    share of the sampler's steps, 34 % for ``E9_511``; grows the paper's own tree if the gains
    last."""

    cpus: int = Field(1, ge=1)
    """Of each worker."""

    @model_validator(mode="after")
    def enough(self) -> Self:
        if self.budget < 2 * self.images:
            raise ValueError(
                f"the budget of {self.budget} does not pay for the first two experts of "
                f"{self.images} images; write at least {2 * self.images}"
            )
        return self
