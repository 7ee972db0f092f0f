"""A study: one pipeline in many variants, and what is claimed of the differences between them.

Every combination of values that an experiment names is a *cell*: an ordinary pipeline, the base
spec with the overrides of its values. All cells are planned as one DAG over one store, so that
nodes that cells have in common are made once.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipelines.spec.base import Strict, did_you_mean
from pipelines.spec.cluster import Cluster

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
Values = list[str | int] | Literal["all"]
"""Names of an axis' values."""

At = dict[str, str | int]
"""Axis → the name of its value."""

SEED = "seed"
"""The axis over which comparisons are repeated, and pairs are formed."""


class Experiment(Strict):
    """A question, and the cells that answer it."""

    asks: str
    """The question, for the report."""

    cells: dict[Name, Values]
    """Axis → the values to combine, or ``all``. An axis that is not named has its first value."""


class Model(Strict):
    """A model of a study: an evaluated group in a cell, or in one cell per seed."""

    group: str = "ensemble"
    """What was evaluated: ``ensemble``, ``single``, ``root``, ``merged``, or the name of a baseline
    or routing of the stage."""

    at: At = Field(default_factory=dict)
    """Axes whose values differ from those of the comparison."""


class Comparison(Strict):
    """Two models, measured on the same draws and captions, in the same seeds."""

    label: str = ""
    """Name for tables and figures."""

    mine: Model
    """The model whose gain is measured."""

    theirs: Model
    """What it is compared with."""

    at: At = Field(default_factory=dict)
    """Axis → value of both models. Other axes but ``seed`` have their first value."""

    measure: str = "val_loss"
    """``val_loss``, ``val_loss/sampler``, ``val_loss/1/8``…, ``kernel_distance``, or a score of a
    metric, such as ``concepts``."""


class Claim(Comparison):
    """A sentence that the study's results support, refute or leave open."""

    says: str
    """The sentence. ``{data}`` stands for the value of the axis ``data``."""

    holds: Literal["better", "worse", "equivalent"] = "better"
    """What the sentence says of ``mine``: better than ``theirs``, worse, or better or worse by at
    most ``margin``."""

    margin: float | None = Field(None, gt=0)
    """With ``equivalent``: the largest difference that counts as none, as a share of the value of
    ``theirs``."""

    each: dict[Name, Values] = Field(default_factory=dict)
    """Axis → values: the claim is made for each combination of them."""

    @model_validator(mode="after")
    def has_margin(self) -> Self:
        if (self.holds == "equivalent") != (self.margin is not None):
            raise ValueError("`margin:` goes with `holds: equivalent`, and is required there")
        return self


FigureKind = Literal[
    "gains",
    "gain_by_noise",
    "losses_by_noise",
    "gain_against",
    "gradients",
    "guidance",
    "text_effect",
    "prompt_switch",
    "encoders",
    "seconds",
    "pictures",
]


class Figure(Strict):
    """A figure of the report."""

    kind: FigureKind
    """``gains``: gain of each comparison, with its interval, in every measure of ``measures``.
    ``gain_by_noise``: gain of each comparison in each stratum of p(σ). ``losses_by_noise``: table
    of the models' losses in each stratum. ``gain_against``: gain of the first comparison against
    ``axis``, whose values are numbers; one line for each further comparison. ``gradients``: cosines
    between noise levels. ``guidance``: quality–alignment curves. ``text_effect``,
    ``prompt_switch``, ``encoders``, ``seconds``: the probe of that name. ``pictures``: sheets of
    samples side by side."""

    title: str
    """Heading, which states what is shown."""

    says: str = ""
    """What it means, as a paragraph under the figure."""

    comparisons: list[Comparison] = Field(default_factory=list)
    """For ``gains``, ``gain_by_noise`` and ``gain_against``."""

    models: dict[str, Model] = Field(default_factory=dict)
    """Label → model, for the other kinds."""

    measures: list[str] = Field(default_factory=lambda: ["val_loss"])
    """Measures to show, for ``gains`` and ``guidance``: there first the alignment, then the
    distance."""

    axis: str | None = None
    """For ``gain_against``: the axis along x."""

    each: dict[Name, Values] = Field(default_factory=dict)
    """Axis → values: the figure is drawn for each combination of them, side by side."""

    at: At = Field(default_factory=dict)
    """Axis → value of all that is shown."""


class Section(Strict):
    """A part of the report."""

    title: str
    text: str = ""
    """Paragraphs, in Markdown."""

    figures: list[Name] = Field(default_factory=list)
    claims: list[Name] = Field(default_factory=list)


class Study(Strict):
    """Variants of one pipeline, and the claims that are made of their results."""

    study: Name
    """Name of the study, and the start of its cells' names."""

    title: str
    """Title of the report."""

    asks: str = ""
    """What the study is about, as a paragraph."""

    base: str
    """The base pipeline's YAML file, relative to the study's."""

    storage: str | None = None
    """Store of all cells; the base's by default."""

    cpus: int | None = Field(None, ge=1)
    """CPUs that the study may use at once; the base's by default."""

    gpus: float | None = Field(None, ge=0)
    """GPUs that the study may use at once; the base's by default."""

    cluster: Cluster | None = None
    """GPUs that the plan estimates time and cost for; the base's by default."""

    stage: str = "base"
    """The stage whose evaluations are compared."""

    axes: dict[Name, dict[str, dict[str, Any]] | list[int]]
    """Axis → value → overrides of the base spec, merged key by key; null removes a key. A list of
    numbers sets the spec's key of the axis' name. One axis is ``seed``."""

    experiments: dict[Name, Experiment] = Field(min_length=1)
    """The questions, by name."""

    claims: dict[Name, Claim] = Field(default_factory=dict)
    """What is claimed. The more there are, the stronger each must be: p-values are corrected for
    their number (Holm)."""

    figures: dict[Name, Figure] = Field(default_factory=dict)
    """Figures of the report."""

    report: list[Section] = Field(default_factory=list)
    """Parts of the report, in order."""

    @field_validator("axes", mode="before")
    @classmethod
    def text_names(cls, given: Any) -> Any:
        """YAML reads a value named ``64`` as a number."""
        if not isinstance(given, dict):
            return given
        return {
            axis: {str(k): v for k, v in values.items()} if isinstance(values, dict) else values
            for axis, values in given.items()
        }

    def values(self, axis: str) -> list[str]:
        """Return the names of an axis' values, in order; ValueError for an unknown axis."""
        if axis not in self.axes:
            raise ValueError(
                f"there is no axis {axis!r}; there are {', '.join(self.axes)}"
                + did_you_mean(axis, self.axes)
            )
        return [str(value) for value in self.axes[axis]]

    def chosen(self, axis: str, names: Values) -> list[str]:
        """Return the values of an axis that are named; ValueError for an unknown one."""
        known = self.values(axis)
        if names == "all":
            return known
        for name in map(str, names):
            if name not in known:
                raise ValueError(
                    f"axis {axis} has no value {name!r}; there are {', '.join(known)}"
                    + did_you_mean(name, known)
                )
        return [str(name) for name in names]

    def axes_of(self, experiment: Experiment) -> dict[str, list[str]]:
        """Return every axis with the values that an experiment combines."""
        return {
            axis: self.chosen(axis, experiment.cells[axis])
            if axis in experiment.cells
            else self.values(axis)[:1]
            for axis in self.axes
        }

    def combinations(self, each: Mapping[str, Values]) -> list[dict[str, str]]:
        """Return every combination of the values of some axes; one without axes if there are
        none."""
        chosen = (self.chosen(axis, values) for axis, values in each.items())
        return [dict(zip(each, values, strict=True)) for values in itertools.product(*chosen)]

    def cells_of(self, experiment: Experiment) -> list[dict[str, str]]:
        """Return the cells of an experiment: every axis' value, in the order of the axes."""
        return self.combinations({axis: [*v] for axis, v in self.axes_of(experiment).items()})

    def place(self, *ats: Mapping[str, str | int]) -> dict[str, str]:
        """Return every axis' value but the seed's: the last of ``ats`` that names it, else its
        first."""
        merged = {axis: str(v) for at in ats for axis, v in at.items()}
        return {
            axis: self.chosen(axis, [merged.get(axis, self.values(axis)[0])])[0]
            for axis in self.axes
            if axis != SEED
        } | {axis: self.chosen(axis, [v])[0] for axis, v in merged.items()}

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if SEED not in self.axes:
            raise ValueError(f"`axes:` needs `{SEED}:`, as `{SEED}: [0, 1, 2, 3, 4]`")
        if empty := [axis for axis, values in self.axes.items() if not values]:
            raise ValueError(f"axis {empty[0]} has no values")
        for name, experiment in self.experiments.items():
            for axis, values in experiment.cells.items():
                self._checked(f"experiments.{name}.cells", axis, values)
        for name, claim in self.claims.items():
            self._check_comparison(f"claims.{name}", claim)
            for axis, values in claim.each.items():
                self._checked(f"claims.{name}.each", axis, values)
        for name, figure in self.figures.items():
            for comparison in figure.comparisons:
                self._check_comparison(f"figures.{name}", comparison)
            for model in figure.models.values():
                self._check_at(f"figures.{name}.models", model.at)
            for axis, values in figure.each.items():
                self._checked(f"figures.{name}.each", axis, values)
            self._check_at(f"figures.{name}.at", figure.at)
        for section in self.report:
            for what, named, known in (
                ("figure", section.figures, self.figures),
                ("claim", section.claims, self.claims),
            ):
                for name in named:
                    if name not in known:
                        raise ValueError(
                            f"`report` section {section.title!r} names {what} {name!r}, which "
                            f"there is none of" + did_you_mean(name, known)
                        )
        return self

    def _check_comparison(self, where: str, comparison: Comparison) -> None:
        for at in (comparison.at, comparison.mine.at, comparison.theirs.at):
            self._check_at(where, at)

    def _check_at(self, where: str, at: Mapping[str, str | int]) -> None:
        for axis, value in at.items():
            self._checked(where, axis, [value])

    def _checked(self, where: str, axis: str, values: Values) -> None:
        try:
            self.chosen(axis, values)
        except ValueError as error:
            raise ValueError(f"`{where}`: {error}") from None
