"""Reads a spec from YAML. An error names the key, what it got and what to write instead."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from pipelines.spec.base import Strict, did_you_mean, nested
from pipelines.spec.bounded_yaml import MAX_CHARACTERS, parse
from pipelines.spec.names import NAME_PATTERN
from pipelines.spec.pipeline import Spec
from pipelines.spec.protocol import Protocol
from pipelines.spec.serving import Serving
from pipelines.spec.study import Study

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Model = TypeVar("Model", bound=Strict)


def load(path: str | Path) -> Spec:
    """Read and check a spec.

    Raises:
        ValueError: There is no such file, or the spec is not valid; the message is one line.
    """
    return _read(path, Spec, "spec", "must hold `name:`, `data:` and `stages:`")


def load_protocol(path: str | Path) -> Protocol:
    """Read and check a protocol.

    Raises:
        ValueError: There is no such file, or the protocol is not valid; the message is one line.
    """
    return _read(path, Protocol, "protocol", "must hold `name:` and `captions:`")


def load_study(path: str | Path) -> Study:
    """Read and check a study; its base and its cells are read by :mod:`pipelines.studies.cells`.

    A study with ``like: OTHER.yaml`` is that other study, changed by what it says itself.

    Raises:
        ValueError: There is no such file, or the study is not valid; the message is one line.
    """
    return _checked(_read_study(Path(path), ()), Study, str(path))


def _read_study(path: Path, before: tuple[Path, ...]) -> dict[str, Any]:
    if path in before:
        raise ValueError(f"{path} is like itself; remove a `like:`")
    raw = read_yaml(path, "study", "must hold `study:`, `base:`, `axes:` and `experiments:`")
    other = raw.pop("like", None)
    if other is None:
        return raw
    if not isinstance(other, str):
        raise ValueError(f"{path}: `like:` names another study's YAML file, got {other!r:.40}")
    return merged(_read_study(path.parent / other, (*before, path)), raw)


def merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with another merged into it key by key; null removes a key, lists are replaced."""
    found = dict(base)
    for key, value in change.items():
        if value is None:
            found.pop(key, None)
        elif isinstance(value, Mapping):
            inner = found.get(key)
            found[key] = merged(inner if isinstance(inner, Mapping) else {}, value)
        else:
            found[key] = deepcopy(value)
    return found


def check_spec(raw: Mapping[str, Any], name: str) -> Spec:
    """Check a spec that was put together, not read from a file.

    Args:
        name: What to call it in an error.

    Raises:
        ValueError: The spec is not valid; the message is one line.
    """
    return _checked(dict(raw), Spec, name)


def check_serving(raw: Mapping[str, Any], name: str) -> Serving:
    """Check settings of the service that were read or put together.

    Args:
        name: What to call them in an error.

    Raises:
        ValueError: They are not valid; the message is one line.
    """
    return _checked(dict(raw), Serving, name)


def read_yaml(path: str | Path, what: str, holds: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping, without checking its keys.

    Args:
        what: What the file is, for an error.
        holds: What such a file must hold.

    Raises:
        ValueError: There is no such file, or it is not such YAML; the message is one line.
    """
    file = Path(path)
    if file.is_dir():
        raise ValueError(f"{path} is a folder; name the {what}'s YAML file")
    if not file.is_file():
        raise ValueError(f"there is no {what} at {path}; pipelines/specs/ has some to start from")
    try:
        with file.open(encoding="utf-8") as opened:
            raw = parse(opened.read(MAX_CHARACTERS + 1))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file; name the {what}'s YAML file") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path} {holds}, got {type(raw).__name__}")
    return raw


def _read(path: str | Path, model: type[Model], what: str, holds: str) -> Model:
    return _checked(read_yaml(path, what, holds), model, str(path))


def _checked(raw: dict[str, Any], model: type[Model], name: str) -> Model:
    try:
        return model.model_validate(raw, context={"file": name})
    except ValidationError as error:
        raise ValueError(f"{name}: {explain(error, model)}") from None


def parse_value(text: str) -> Any:
    """The value of a key, written as in a spec; ValueError if it is not valid YAML."""
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"the value cannot be read: {error}") from None


SECRETS = {"s3", "notify", "tracking", "storage", "path"}
"""Keys whose values an error does not show, as they may hold a password or a token."""

MAX_ERRORS = 3
"""Number of validation errors that a message names."""

PATTERNS = {NAME_PATTERN: "write lower-case letters, digits and hyphens"}
"""Pattern of a field → what to write, in words."""

MISSING = {
    f"data.{split}": f"write `{split}: {{path: ...}}` below `data:`"
    for split in ("train", "validation")
} | {"model": "name the model to serve"}
"""Required key → what to write if it is missing."""


def explain(error: ValidationError, model: type[Strict] = Spec) -> str:
    """Return validation errors in one line: the first three, and how many more.

    Unknown keys come first, since a misspelt key often causes the errors after it.

    Args:
        model: What was validated.
    """
    found = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    more = f" (and {len(found) - MAX_ERRORS} more)" if len(found) > MAX_ERRORS else ""
    return "; ".join(_explain_one(one, model) for one in found[:MAX_ERRORS]) + more


def _explain_one(error: ErrorDetails, model: type[Strict]) -> str:
    field = getattr(error.get("ctx", {}).get("error"), "field", "")
    key = ".".join([*(str(part) or "''" for part in error["loc"]), *([field] if field else [])])
    if error["type"] == "extra_forbidden":
        known = _fields_at(error["loc"][:-1], model)
        hint = did_you_mean(str(error["loc"][-1]), known) or f"; known are {', '.join(known)}"
        return f"unknown key `{key}`{hint}"
    if error["type"] == "missing":
        hint = f"; {MISSING[key]}" if key in MISSING else ""
        return f"`{key}` is missing{hint}"
    at = f"`{key}`: " if key else ""
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{at}{message}"
    if error["type"] == "string_pattern_mismatch":
        message = PATTERNS.get(error.get("ctx", {}).get("pattern", ""), message)
    is_secret = not SECRETS.isdisjoint(map(str, error["loc"]))
    got = "" if is_secret else f", got {error['input']!r:.60}"
    return f"{at}{message[:1].lower()}{message[1:]}{got}"


def _fields_at(path: tuple[int | str, ...], model: type[Strict]) -> list[str]:
    """Return the keys that are known at a place in a model's YAML."""
    parts = list(path)
    while parts:
        inner, many = nested(model.model_fields[str(parts.pop(0))].annotation)
        if inner is None:
            return []
        model = inner
        if many and parts:
            parts.pop(0)  # the name of a stage, an expert, a group, …
    return list(model.model_fields)
