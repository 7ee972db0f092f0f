"""Reads a spec from YAML. An error names the key, what it got and what to write instead."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import ValidationError

from pipelines.spec.base import Strict, did_you_mean, nested
from pipelines.spec.pipeline import Spec


def load(path: str | Path) -> Spec:
    """Read and check a spec.

    Raises:
        ValueError: There is no such file, or the spec is not valid; the message is one line.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"there is no spec at {path}; pipelines/specs/ has some to start from")
    try:
        raw = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {_where(error)}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold `name:`, `data:` and `stages:`, got {raw!r:.40}")
    try:
        return Spec.model_validate(raw, context={"file": str(path)})
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error)}") from None


def _where(error: yaml.YAMLError) -> str:
    """Return what is wrong, and the line's number. Not the line, which may hold a secret."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    message = ", ".join(part for part in (error.context, error.problem) if part)
    return f"{message} (line {error.problem_mark.line + 1})"


def explain(error: ValidationError) -> str:
    """Return the first of a spec's validation errors in one line, and how many more there are."""
    first = error.errors()[0]
    field = getattr(first.get("ctx", {}).get("error"), "field", "")
    key = ".".join(str(part) for part in (*first["loc"], field) if part != "")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _fields_at(first["loc"][:-1])
        hint = did_you_mean(str(first["loc"][-1]), known) or f"; known are {', '.join(known)}"
        return f"unknown key `{key}`{hint}{more}"
    if first["type"] == "missing":
        return f"`{key}` is missing{more}"
    at = f"`{key}`: " if key else ""
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{at}{message}{more}"
    got = "" if key.split(".")[0] == "s3" else f", got {first['input']!r:.60}"  # a secret perhaps
    return f"{at}{message[:1].lower()}{message[1:]}{got}{more}"


def _fields_at(path: tuple[int | str, ...]) -> list[str]:
    """Return the keys that are known at a place in a spec."""
    model: type[Strict] = Spec
    parts = list(path)
    while parts:
        inner, many = nested(model.model_fields[str(parts.pop(0))].annotation)
        if inner is None:
            return []
        model = inner
        if many and parts:
            parts.pop(0)  # the name of a stage, an expert, a group, …
    return list(model.model_fields)
