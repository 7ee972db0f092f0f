"""What every part of a spec is made of."""

from typing import Any

from pydantic import BaseModel, ConfigDict

LATER = "later"
"""Marks a field that came when results were stored already, as ``Annotated[int, LATER]``."""


class Strict(BaseModel):
    """Frozen, takes no unknown key and turns no type into another."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def settings(self) -> dict[str, Any]:
        """All fields, as they enter a fingerprint.

        Those marked ``LATER`` are left out at their default, so that whoever does not write them
        keeps the fingerprints, and so the results, from before there were such fields.
        """
        found = self.model_dump()
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if LATER in field.metadata and value == field.get_default(call_default_factory=True):
                del found[name]
            elif isinstance(value, Strict):
                found[name] = value.settings()
        return found


Labels = dict[str, str]
"""Which of a cluster's machines are meant: those that have all of these, as Ray selects by labels,
such as ``{ediffi-group: base}`` or ``{ray.io/accelerator-type: "in(A100,H100)"}``."""
