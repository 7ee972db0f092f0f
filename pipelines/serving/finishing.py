"""What happens to each picture before a caller gets it: it is judged, marked, and made a file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipelines.models.metadata import ModelId
from pipelines.models.painting import encode_png
from pipelines.models.watch import Pictures
from pipelines.serving.engine import ModelInfo, Order
from pipelines.serving.events import Finished, Step
from pipelines.serving.filters import Judges
from pipelines.serving.logs import log
from pipelines.serving.marks import mark
from pipelines.serving.png import Said, to_png
from pipelines.spec.sampling import Sampling
from pipelines.spec.serving import Marks


@dataclass(frozen=True, kw_only=True)
class Finisher:
    """Judges, marks and writes the pictures of a service. Its methods take time."""

    judges: Judges
    marks: Marks

    @property
    def is_marking(self) -> bool:
        """Whether pixels are changed."""
        return self.marks.visible or self.marks.invisible

    def preview(self, event: Step) -> Step:
        """A step whose preview has the marks of finished pictures."""
        if event.preview is None:
            return event
        marked = mark(_pixels(event.preview), self.marks)
        return event.model_copy(update={"preview": encode_png(marked)})

    def finished(self, event: Finished, order: Order, models: Sequence[ModelInfo]) -> Finished:
        """A picture that filters let pass, as a file that says what it is.

        Args:
            models: those of the service, one of which has drawn the picture.

        Raises:
            Refused: A filter refuses it, or fails.
        """
        pixels = _pixels(event.png)
        self.judges.judge_picture(pixels)
        if self.is_marking:
            pixels = mark(pixels, self.marks)
        own = sampling_of(event.model, models)
        if own is None:
            log.warning("%s is gone; its last pictures have no metadata", event.model)
            return event.model_copy(update={"png": encode_png(pixels)})
        row = order.rows[event.picture]
        said = Said(model=event.model, row=row, sampling=own, stage=order.stage)
        png = base64.b64encode(to_png(pixels, said)).decode()
        return event.model_copy(update={"png": png})


def sampling_of(model: ModelId, models: Sequence[ModelInfo]) -> dict[str, Sampling] | None:
    """Stage → own settings of the model that has drawn a picture; None if it is not there."""
    for info in models:
        if info.id == model:
            return {stage.name: Sampling.from_settings(stage.sampling) for stage in info.stages}
    return None


def _pixels(png: str) -> Pictures:
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        return np.asarray(image.convert("RGB"))
