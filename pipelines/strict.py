"""What every part of a spec is made of."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Frozen, takes no unknown key and turns no type into another."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
