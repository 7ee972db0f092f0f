"""The cells of a study: an ordinary pipeline for each combination of values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.spec.loading import check_spec, load_study, merged, read_yaml
from pipelines.spec.pipeline import Spec
from pipelines.spec.study import SEED, Study


@dataclass(frozen=True, kw_only=True)
class CellSpec:
    """One cell, before it is run."""

    name: str
    """Name of the pipeline: the study's, then every value that is not the first of its axis, then
    the seed."""

    at: Mapping[str, str]
    """Axis → value, of all axes."""

    experiments: tuple[str, ...]
    """The experiments that need it."""

    raw: Mapping[str, Any]
    """The spec as YAML holds it."""

    spec: Spec


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A study with its cells."""

    study: Study
    base: Spec
    """The base pipeline, under the study's name and with its storage, CPUs and GPUs."""

    cells: tuple[CellSpec, ...]
    """All cells, seed by seed: the first seed of every question is answered first."""


def open_study(path: Path, *, storage: str | None = None) -> Opened:
    """Read a study and put its cells together.

    Args:
        path: The study's YAML file.
        storage: Store to use instead of the study's.

    Raises:
        ValueError: The study, its base or a cell is not valid; a cell's error names the cell.
    """
    study = load_study(path)
    base_path = path.parent / study.base
    raw = read_yaml(base_path, "spec", "must hold `name:`, `data:` and `stages:`")
    ours: dict[str, Any] = {"name": study.study}
    ours |= {key: v for key in ("cpus", "gpus") if (v := getattr(study, key)) is not None}
    if study.cluster is not None:
        ours["cluster"] = study.cluster.model_dump(exclude_unset=True)
    if where := storage or study.storage:
        ours["storage"] = where
    raw = {**raw, **ours}
    base = check_spec(raw, str(base_path))
    if study.stage not in base.stages:
        raise ValueError(
            f"{path}: `stage: {study.stage}` is none of {base_path}; there are "
            f"{', '.join(base.stages)}"
        )
    cells = tuple(_cells(study, raw, str(path)))
    return Opened(study=study, base=base, cells=cells)


def _cells(study: Study, base: Mapping[str, Any], file: str) -> Iterator[CellSpec]:
    needed: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for experiment, of in study.experiments.items():
        for place in study.cells_of(of):
            needed.setdefault(tuple(place.items()), []).append(experiment)
    seeds = study.values(SEED)
    for key in sorted(needed, key=lambda key: seeds.index(dict(key)[SEED])):
        place = dict(key)
        name = cell_name(study, place)
        raw = {**overridden(study, base, place), "name": name}
        yield CellSpec(
            name=name,
            at=place,
            experiments=tuple(needed[key]),
            raw=raw,
            spec=check_spec(raw, f"{file}, cell {name}"),
        )


def cell_name(study: Study, at: Mapping[str, str]) -> str:
    """Name of a cell's pipeline."""
    parts = [study.study]
    for axis in study.axes:
        if axis != SEED and at[axis] != study.values(axis)[0]:
            parts.append(re.sub(r"[^a-z0-9]+", "-", at[axis].lower()).strip("-"))
    return "-".join([*parts, f"s{at[SEED]}"])


def overridden(study: Study, base: Mapping[str, Any], at: Mapping[str, str]) -> dict[str, Any]:
    """The base spec with the overrides of some values, in the order of the axes."""
    found = deepcopy(dict(base))
    for axis, value in at.items():
        values = study.axes[axis]
        change = values[value] if isinstance(values, dict) else {axis: int(value)}
        found = merged(found, change)
    return found


def write_cells(opened: Opened, folder: Path) -> list[Path]:
    """Write every cell's spec as YAML, so that `ediffi plan`, `diff` and `run` take it."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for cell in opened.cells:
        paths.append(folder / f"{cell.name}.yaml")
        text = yaml.safe_dump(dict(cell.raw), sort_keys=False, allow_unicode=True, width=100)
        where = ", ".join(f"{axis} {value}" for axis, value in cell.at.items())
        paths[-1].write_text(
            f"# Cell of the study {opened.study.study}: {where}.\n{text}", encoding="utf-8"
        )
    return paths
