"""What MLflow loads for a registered ensemble: rows of prompts and options in, pictures out.

What MLflow keeps is ``ensemble.json`` and this module's name; the code is the installed package's.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import pandas as pd

from ediffi_core.control import Phrase
from ediffi_core.sampling import SOLVERS
from pipelines.models import painting
from pipelines.models.text_to_image import Pictures, TextToImage

OPTIONS = ("seed", "guidance", "steps", "solver", "paint", "style")
"""Columns besides ``prompt``. MLflow is not told their types, and they are checked here: it would
refuse numbers of which one row has none, whole ones where others go, and a list written as JSON.
The price is CSV, which its server reads by types alone."""

EXACT = 2**53
"""Whole numbers beyond this are not what was written once they went through a float."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a picture is drawn with; None for the ensemble's own. Rows of equal ones go together."""

    guidance: float | None = None
    steps: int | None = None
    solver: str | None = None
    style: str | None = None
    is_painted: bool = False


@dataclass(frozen=True, kw_only=True)
class Request:
    """One row."""

    prompt: str
    seed: int
    paint: Sequence[Phrase]
    options: Options


class EnsembleModel:
    """A data frame of ``prompt`` and :data:`OPTIONS` → one of ``png``: pictures in base64.

    Text and no bytes or arrays, so that Python and JSON get the same, and a picture that was drawn
    can be the ``style`` of the next call. A picture depends on its own row alone; it is the
    one that ``ediffi sample`` draws of this prompt and seed.
    """

    def __init__(self, model: TextToImage) -> None:
        self.model = model
        self.turn = threading.Lock()
        """MLflow's server calls from several threads; tokenizers cannot be used by two at once."""

    def predict(self, data: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """
        Args:
            params: ``stage``, up to which all rows are drawn, so that they are of one size.
        """
        from mlflow.exceptions import MlflowException

        try:
            asked = requests(data)
            with self.turn:
                pictures = draw(self.model, asked, (params or {}).get("stage"))
        except ValueError as error:  # the server answers it with 400, any other with a traceback
            raise MlflowException.invalid_parameter_value(str(error)) from error
        return pd.DataFrame({"png": [painting.encoded(p) for p in pictures]}, index=data.index)


def _load_pyfunc(path: str) -> EnsembleModel:
    """MLflow calls it with the path of the ``ensemble.json``."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    return EnsembleModel(TextToImage.load(path))


def draw(model: TextToImage, asked: Sequence[Request], stage: str | None = None) -> list[Pictures]:
    """One picture a request, in their order; those of equal options in one batch."""
    groups: dict[Options, list[int]] = {}
    for row, request in enumerate(asked):
        groups.setdefault(request.options, []).append(row)
    found: dict[int, Pictures] = {}
    for options, rows in groups.items():
        mine = [asked[row] for row in rows]
        pictures = model.sample(
            [r.prompt for r in mine],
            seed=[r.seed for r in mine],
            guidance=options.guidance,
            steps=options.steps,
            solver=options.solver,
            style=[painting.decoded(options.style)] if options.style else (),
            paint=[r.paint for r in mine] if options.is_painted else None,
            up_to=stage,
        )
        found |= dict(zip(rows, pictures, strict=True))
    return [found[row] for row in range(len(asked))]


def requests(data: pd.DataFrame) -> list[Request]:
    """The rows, checked; ValueError names the row and the column."""
    found = []
    for number, row in enumerate(data.to_dict("records"), 1):
        given = {str(k): v for k, v in row.items() if not _is_missing(v)}
        try:
            found.append(_request(given))
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from error
    return found


def _request(given: dict[str, Any]) -> Request:
    prompt = given.get("prompt")
    if not isinstance(prompt, str):
        raise ValueError(f"`prompt` is {prompt!r}; write a text")
    solver = given.get("solver")
    if solver is not None and solver not in SOLVERS:
        raise ValueError(f"`solver` {solver!r} is unknown; there are {', '.join(SOLVERS)}")
    style = given.get("style")
    if style is not None:
        painting.decoded(str(style))
    paint = _phrases(given.get("paint"))
    guidance, steps = _number(given, "guidance"), _whole(given, "steps")
    if guidance is not None and guidance < 0:
        raise ValueError(f"`guidance` is {guidance}; write a number from 0 on")
    if steps is not None and steps < 1:
        raise ValueError(f"`steps` is {steps}; write a whole number from 1 on")
    return Request(
        prompt=prompt,
        seed=_whole(given, "seed") or 0,
        paint=paint,
        options=Options(
            guidance=guidance, steps=steps, solver=solver, style=style, is_painted=bool(paint)
        ),
    )


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _number(given: dict[str, Any], name: str) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"`{name}` is {value!r}; write a number")
    return float(value)


def _whole(given: dict[str, Any], name: str) -> int | None:
    """A float counts if it is whole: a column in which one row has none is of floats."""
    value = given.get(name)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    number = _number(given, name)
    if number is None:
        return None
    if number != int(number) or abs(number) > EXACT:
        raise ValueError(f"`{name}` is {value!r}; write a whole number, exact up to {EXACT}")
    return int(number)


def _phrases(given: Any) -> list[Phrase]:
    """A list of ``{phrase, where, strength}``, or the same as JSON."""
    if given is None:
        return []
    try:
        raw = json.loads(given) if isinstance(given, str) else list(given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`paint` {str(given)[:80]!r} is no JSON list ({error})") from error
    if not isinstance(raw, list):
        raise ValueError(f"`paint` {str(given)[:80]!r} is no list; write [{{phrase, where}}, …]")
    return painting.described(raw)
