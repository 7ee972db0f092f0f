"""Specs with changes, planned in an empty store."""

import yaml
from paths import SPECS

from pipelines.dag import plan, sources
from pipelines.spec.pipeline import Spec
from pipelines.store.artifacts import Store


def raw(name="smoke"):
    return yaml.safe_load((SPECS / f"{name}.yaml").read_text())


def edited(name="smoke", **changes):
    """A spec with changes: ``a__b=value`` sets ``a.b``."""
    out = raw(name)
    for at, value in changes.items():
        *path, key = at.split("__")
        place = out
        for part in path:
            place = place.setdefault(part, {})
        place[key] = value
    return Spec.model_validate(out)


def planned(spec):
    """A plan in which no node is done, and only ``pairs:`` of the data is known."""
    return plan.make(spec, Store.at("/dev/null"), sources.identify_all(spec, assume=True))
