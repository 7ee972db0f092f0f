"""What every part of a spec is made of."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Frozen, takes no unknown key and turns no type into another."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Labels = dict[str, str]
"""Which of a cluster's machines are meant: those that have all of these, as Ray selects by labels,
such as ``{ediffi-group: base}`` or ``{ray.io/accelerator-type: "in(A100,H100)"}``."""
