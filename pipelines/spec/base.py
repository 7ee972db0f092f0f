"""What all parts of a spec share: strict models, renamed keys, settings as nodes store them."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Collection, Iterable, Mapping
from types import UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator
from pydantic.fields import FieldInfo

from pipelines.spec.renamed import Renamed, SpecWarning

LATER = "later"
"""Marks a field that is newer than some stored results, as ``Annotated[int, LATER]``.

Settings leave such a field out at its default, so the stored results stay valid.
"""


class Strict(BaseModel):
    """A part of a spec: frozen, without unknown keys, and without conversion between types."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # it may be a secret
    )

    @model_validator(mode="before")
    @classmethod
    def new_names(cls, given: Any, info: ValidationInfo) -> Any:
        """Replace old names of keys, here and in all nested parts, with a warning for each."""
        if not isinstance(given, dict):
            return given
        # The outermost model does it for all that it holds, since only it knows the whole path.
        context = info.context or {}
        file = context.get("file")
        before = f"{file}: " if file else ""
        return _with_new_names(cls, given, (), None if context.get("stored") else before)

    def settings(self, only: Collection[str] | None = None) -> dict[str, Any]:
        """Return the fields as nodes store them, which is what enters a fingerprint.

        Renamed fields have their stored names. Fields marked ``LATER`` are left out at their
        default.

        Args:
            only: Names of the fields to return; all by default.
        """
        found = {}
        for name, field in type(self).model_fields.items():
            if only is not None and name not in only:
                continue
            value = getattr(self, name)
            if LATER in field.metadata and value == field.get_default(call_default_factory=True):
                continue
            found[stored_name(name, field)] = _stored(value)
        return found

    @classmethod
    def from_settings(cls, stored: Mapping[str, Any]) -> Self:
        """Read what :meth:`settings` returned. Stored names cause no warning here."""
        return cls.model_validate(dict(stored), context={"stored": True})


def stored_name(name: str, field: FieldInfo) -> str:
    """Return the name under which nodes store a field: the old one if it was renamed."""
    return next((mark.old for mark in field.metadata if isinstance(mark, Renamed)), name)


def names_in_specs(model: type[Strict]) -> dict[str, str]:
    """Return stored name → name in a spec, of all renamed fields of a model and its parts."""
    found = {}
    for name, field in model.model_fields.items():
        if (stored := stored_name(name, field)) != name:
            found[stored] = name
        inner, _ = nested(field.annotation)
        found |= names_in_specs(inner) if inner else {}
    return found


def _stored(value: Any) -> Any:
    if isinstance(value, Strict):
        return value.settings()
    if isinstance(value, dict):
        return {k: _stored(v) for k, v in value.items()}
    return [_stored(v) for v in value] if isinstance(value, list) else value


def nested(annotation: Any) -> tuple[type[Strict] | None, bool]:
    """Return the model in a field's type, if any, and whether it is one for each key of a dict."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is dict:
        return nested(arguments[1])[0], True
    if origin in (Union, UnionType, Annotated):
        return next((found for a in arguments if (found := nested(a))[0]), (None, False))
    if origin is None and isinstance(annotation, type) and issubclass(annotation, Strict):
        return annotation, False
    return None, False


def _with_new_names(
    model: type[Strict], given: dict[Any, Any], at: tuple[str, ...], before: str | None
) -> dict[Any, Any]:
    """
    Args:
        at: Path to ``given`` from the outermost model.
        before: Begin of a warning; None for no warning.
    """
    found = dict(given)
    for name, field in model.model_fields.items():
        if (old := stored_name(name, field)) != name and old in found:
            path = ".".join((*at, old))
            if name in found:
                raise ValueError(
                    f"`{path}` is the old name of `{name}`, and both are given; remove `{old}:`"
                )
            if before is not None:
                told = f"{before}`{path}` is now called `{name}`; rename it, for the next version "
                warnings.warn(told + "will not accept the old name", SpecWarning, stacklevel=2)
            found = {name if key == old else key: value for key, value in found.items()}
        inner, many = nested(field.annotation)
        value = found.get(name)
        if inner is None or not isinstance(value, dict):
            continue
        if many:
            found[name] = {
                key: _with_new_names(inner, part, (*at, name, str(key)), before)
                if isinstance(part, dict)
                else part
                for key, part in value.items()
            }
        else:
            found[name] = _with_new_names(inner, value, (*at, name), before)
    return found


def did_you_mean(word: str, known: Iterable[Any]) -> str:
    """Return an ending for an error message that names the closest known word, or nothing."""
    match = difflib.get_close_matches(str(word), [str(k) for k in known], n=1)
    return f"; did you mean `{match[0]}`?" if match else ""


Labels = dict[str, str]
"""Labels that a machine must all have, as Ray selects nodes by label: ``{ediffi-group: base}`` or
``{ray.io/accelerator-type: "in(A100,H100)"}``."""
