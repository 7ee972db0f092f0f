"""Every kind of figure, and the function that prepares it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pipelines.spec.study import Figure, FigureKind
from pipelines.studies.report import effects, gradients, pictures, probes
from pipelines.studies.report.shown import Shown, Source

Figures = Mapping[str, Shown]

KINDS: Mapping[FigureKind, Callable[[Source, str, Figure], Shown]] = {
    "gains": effects.gains,
    "gain_by_noise": effects.gain_by_noise,
    "losses_by_noise": effects.losses_by_noise,
    "gain_against": effects.gain_against,
    "gradients": gradients.gradients,
    "guidance": probes.guidance,
    "text_effect": probes.text_effect,
    "prompt_switch": probes.prompt_switch,
    "encoders": probes.encoders,
    "seconds": probes.seconds,
    "pictures": pictures.pictures,
}


def prepared(source: Source) -> Figures:
    """All figures of a study by name; what a figure lacks is said in its ``missing``."""
    return {
        name: KINDS[figure.kind](source, name, figure)
        for name, figure in source.study.figures.items()
    }
