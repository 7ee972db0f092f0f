"""Saved views of an experiment: what MLflow's page of runs offers under "Views".

MLflow keeps a saved view as a tag of the experiment, with a search, an order and columns. These
answer what people ask of an expert tree; ``infra/docs/record.md`` has the searches as text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PREFIX = "mlflow.sharedViewState."
CREATED_MS = 1_796_000_000_000
"""Time of the views, fixed so that writing them again changes nothing."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A saved view of the page of runs."""

    name: str
    search: str
    """Filter in MLflow's syntax; empty for all runs, as a tree."""

    columns: tuple[str, ...]
    order: str = "attributes.start_time"
    ascending: bool = False

    def tag(self) -> str:
        """The value of the experiment's tag, as MLflow's page writes it."""
        state = {
            "searchFilter": self.search,
            "orderByKey": self.order,
            "orderByAsc": self.ascending,
            "selectedColumns": list(self.columns),
        }
        made = {"createdAt": CREATED_MS, "updatedAt": CREATED_MS}
        return json.dumps({"name": self.name, **made, "state": json.dumps(state)})


def _tags(*names: str) -> tuple[str, ...]:
    return tuple(f"tags.`ediffi.{name}`" for name in names)


def _metrics(*names: str) -> tuple[str, ...]:
    return tuple(f"metrics.`final/{name}`" for name in names)


MADE_WITH = ("attributes.`Dataset`", "attributes.`Models`")
EXPERT = (
    *_tags("path", "sigma_lo", "sigma_hi", "adopted", "execution"),
    "params.`images`",
    *_metrics("val_loss", "val_gain"),
    *MADE_WITH,
)
PATH = "tags.`ediffi.path`"

VIEWS: Mapping[str, View] = {
    "overview": View(
        name="All runs",
        search="",
        columns=(
            "attributes.`Created`",
            "attributes.`Duration`",
            *MADE_WITH,
            *_tags("kind", "state", "champion"),
            *_metrics("val_loss", "val_gain"),
        ),
    ),
    "experts": View(
        name="Experts of the tree",
        search="tags.`ediffi.kind` = 'train'",
        columns=EXPERT,
        order=PATH,
        ascending=True,
    ),
    "below-E1_1": View(
        name="Everything below E1_1",
        search="tags.`ediffi.path` LIKE '%/E1_1/%'",
        columns=EXPERT,
        order=PATH,
        ascending=True,
    ),
    "champions": View(
        name="Champions over time",
        search="tags.`ediffi.champion` LIKE '2%'",
        columns=("attributes.`Created`", *_tags("champion", "version"), *MADE_WITH),
    ),
    "evaluations": View(
        name="Evaluations",
        search="tags.`ediffi.kind` = 'evaluate'",
        columns=(*_tags("stage", "state", "execution"), *_metrics("val_loss"), *MADE_WITH),
    ),
}
"""Id, which is the end of the view's address, → view."""


def save(client: Any, experiment: str) -> None:
    """Give an experiment the views, but for those that people have changed since."""
    tags = client.get_experiment(experiment).tags
    for name, view in VIEWS.items():
        key, value = f"{PREFIX}{name}", view.tag()
        if tags.get(key) != value and _is_ours(tags.get(key)):
            client.set_experiment_tag(experiment, key, value)


def _is_ours(tag: str | None) -> bool:
    """Whether a saved view is missing, or as an earlier version of this module wrote it."""
    if tag is None:
        return True
    try:
        return bool(json.loads(tag)["updatedAt"] == CREATED_MS)
    except (ValueError, KeyError, TypeError):  # another format of MLflow's
        return False
