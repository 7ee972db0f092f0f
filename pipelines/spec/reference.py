"""Writes the reference of all keys and the JSON schema: ``python -m pipelines.spec.reference``."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.spec.base import Strict, nested, stored_name
from pipelines.spec.cluster import Group
from pipelines.spec.data import Range
from pipelines.spec.encoders import MoreText
from pipelines.spec.evaluation import FeatureNetwork, Losses, MeasureOptions
from pipelines.spec.pipeline import Spec
from pipelines.spec.sampling import Churn, Guidance
from pipelines.spec.training import BadLoss, Dropout, Retries

ROOT = Path(__file__).resolve().parents[1]
REFERENCE, SCHEMA = ROOT / "docs" / "spec.md", ROOT / "specs" / "schema.json"

INLINE = {BadLoss, Churn, Dropout, FeatureNetwork, Group, Guidance, Losses}
INLINE |= {MeasureOptions, MoreText, Range, Retries}
"""Models without a section of their own: their keys are in the section of the model they are in."""

EACH = {"stages": "STAGE", "experts": "EXPERT", "groups": "GROUP"}
"""What stands for a key that the user chooses; else ``NAME``."""

INTRODUCTION = """\
# Keys of a spec

<!-- Written by `python -m pipelines.spec.reference` from the docstrings in pipelines/spec/. -->

A spec is a YAML file that describes one pipeline. [demo.yaml](../specs/demo.yaml) is a small one,
[ediffi-d.yaml](../specs/ediffi-d.yaml) is the paper's. This is the smallest:

```yaml
name: my-pictures
data:
  train: {path: /data/train}
  validation: {path: /data/validation}
stages:
  base:
    resolution: 64
    network: {preset: base64}
    experts: {E0_0: {images: 6400000}}
    ensemble: [E0_0]
```

An unknown key is an error, and values are not converted: `"3"` is not an integer. Write integers
without underscores, which YAML 1.2 does not know: `6400000`, not `6_400_000`. `STAGE`,
`EXPERT`, `GROUP` and `NAME` in a path stand for a name of your choice. A key without a default is
not set unless you set it. A key with a former name accepts it for one more version, with a warning.

`ediffi plan SPEC` checks a spec and shows what it would run. For completion and checks in an editor
with a YAML language server, begin the file with the path to
[schema.json](../specs/schema.json):

```
# yaml-language-server: $schema=pipelines/specs/schema.json
```
"""


# -- JSON schema -----------------------------------------------------------------------------------


def schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a spec, with old names of keys as deprecated."""
    found = Spec.model_json_schema()
    parts = found.pop("$defs")
    models = {model.__name__: model for model in models_of(Spec)}
    for name, part in (*parts.items(), (Spec.__name__, found)):
        _complete(part, models[name])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **found,
        "title": "ediffi pipeline",
        "$defs": parts,
    }


def models_of(model: type[Strict]) -> Iterator[type[Strict]]:
    """Yield a model and all models in its fields, as often as they occur."""
    yield model
    for field in model.model_fields.values():
        if inner := nested(field.annotation)[0]:
            yield from models_of(inner)


def _complete(part: dict[str, Any], model: type[Strict]) -> None:
    """Make the schema of one model readable, and add the old names of its keys."""
    part["description"] = plain(inspect.getdoc(model) or "")
    del part["title"]
    keys: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        keys[name] = key = dict(part["properties"][name])
        key.pop("title", None)
        key["description"] = plain(field.description or "")
        if isinstance(field.default, Strict):
            del key["default"]  # its own keys have theirs
        if patterns := key.pop("patternProperties", None):  # which would allow all other names
            ((pattern, key["additionalProperties"]),) = patterns.items()
            key["propertyNames"] = {"pattern": pattern}
        if (old := stored_name(name, field)) != name:
            told = f"Former name of `{name}`."
            message = f"Rename this to `{name}`. The next version will not accept the old name."
            about = {"description": told, "deprecated": True, "deprecationMessage": message}
            keys[old] = key | about
    part["properties"] = keys


def plain(docstring: str) -> str:
    """Return a docstring as one line per paragraph, with Markdown's code marks."""
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", docstring.replace("``", "`"))
    return "\n\n".join(" ".join(p.split()) for p in re.split(r"\n\s*\n", text.strip()))


# -- Markdown --------------------------------------------------------------------------------------


@dataclass
class Section:
    """A model, and all paths at which a spec has it."""

    model: type[Strict]
    paths: list[str]

    @property
    def title(self) -> str:
        return ", ".join(f"`{path}`" for path in self.paths) if self.paths[0] else "Top level"

    @property
    def link(self) -> str:
        """A link to the section on GitHub, whose anchors have no punctuation."""
        return "#" + re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")


def sections() -> list[Section]:
    """Return the sections of the reference in the order of the spec."""
    found: dict[type[Strict], Section] = {}

    def visit(model: type[Strict], path: str) -> None:
        if model not in INLINE:
            found.setdefault(model, Section(model, [])).paths.append(path)
        for name, field in model.model_fields.items():
            inner, many = nested(field.annotation)
            if inner:
                at = f"{path}.{name}" if path else name
                visit(inner, f"{at}.{EACH.get(name, 'NAME')}" if many else at)

    visit(Spec, "")
    return list(found.values())


def reference() -> str:
    """Return the reference of all keys in Markdown."""
    made = sections()
    links = {section.model: section.link for section in made}
    whole = schema()
    lines = [INTRODUCTION, "## Sections\n"]
    for section in made:
        depth = max(0, sum(part.islower() for part in section.paths[0].split(".")) - 1)
        lines.append(f"{'  ' * depth}- [{section.title}]({section.link})")
    for section in made:
        about = plain(inspect.getdoc(section.model) or "")
        lines += ["", f"## {section.title}", "", linked(about), ""]
        lines += ["| Key | Type and default | Meaning |", "|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in rows(section.model, whole, links)]
    return "\n".join(lines) + "\n"


def rows(
    model: type[Strict], whole: dict[str, Any], links: dict[type[Strict], str], at: str = ""
) -> Iterator[tuple[str, str, str]]:
    """Yield key, type with default, and meaning, of a model and of the models inlined in it."""
    of = whole if model is Spec else whole["$defs"][model.__name__]
    own = sorted(model.model_fields.items(), key=lambda item: item[0] not in model.__annotations__)
    for name, field in own:
        key = of["properties"][name]
        inner, many = nested(field.annotation)
        kind, meaning = type_of(key), key["description"]
        if inner:
            where = f"[section]({links[inner]})" if inner in links else "keys below"
            each = f"{EACH.get(name, 'name').lower()} → " if many else ""
            bare = any(k.get("type") == "number" for k in key.get("anyOf", ()))
            kind = f"number, or {where}" if bare else each + where
        if inner in INLINE:
            _, _, more = plain(inspect.getdoc(inner) or "").partition("\n\n")
            meaning += f" {more}" if more else ""
        if (old := stored_name(name, field)) != name:
            meaning += f" Formerly `{old}`."
        if name in of.get("required", ()):
            kind += "<br>required"
        elif key.get("default") is not None:
            kind += f"<br>default `{in_yaml(key['default'])}`"
        yield f"`{at}{name}`", kind, linked(" ".join(meaning.split()))
        if inner in INLINE:
            below = f"{at}{name}.{EACH.get(name, 'NAME')}." if many else f"{at}{name}."
            yield from rows(inner, whole, links, below)


def linked(text: str) -> str:
    return re.sub(r"arXiv:(\d+\.\d+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def in_yaml(value: Any) -> str:
    """Return a value as YAML's flow style writes it."""
    if isinstance(value, list):
        return f"[{', '.join(map(in_yaml, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def type_of(key: dict[str, Any], plural: str = "") -> str:
    """Return the type of a key and its range, in words.

    Args:
        plural: Ending of the type's noun.
    """
    if "anyOf" in key:
        kinds = [k for k in key["anyOf"] if k.get("type") != "null"]
        bounds = {k: v for k, v in key.items() if k in ("minimum", "enum", "items")}
        return " or ".join(type_of({**kind, **bounds}, plural) for kind in kinds)
    if "const" in key:
        return f"`{key['const']}`"
    if "enum" in key:
        *most, last = (f"`{value}`" for value in key["enum"] if value is not None)
        return f"{', '.join(most)} or {last}"
    kind = key.get("type")
    if kind == "array":
        return f"list of {type_of(key['items'], 's')}"
    if kind == "object":
        inner = key.get("additionalProperties")
        return f"name → {type_of(inner)}" if isinstance(inner, dict) else "options"
    secret = ", secret" if key.get("format") == "password" else ""
    return f"{kind}{plural}{_range(key)}{secret}"


def _range(key: dict[str, Any]) -> str:
    low, high = key.get("minimum"), key.get("maximum")
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}" if high < 1e6 else f" from {low:g} to {high}"
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "maximum": "≤"}
    bounds = [
        f"{sign}\N{NO-BREAK SPACE}{key[name]:g}" for name, sign in signs.items() if name in key
    ]
    return f" {', '.join(bounds)}" if bounds else ""


def files() -> dict[Path, str]:
    """Return the two files that this module writes, with their content."""
    made = json.dumps(schema(), indent=1, ensure_ascii=False)
    return {REFERENCE: reference(), SCHEMA: f"{made}\n"}


def main() -> None:
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
