"""Panels as SVG that follows the page's colours, and as PNG."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 360
"""Width of a panel in its own units; a narrow phone shows them as that many pixels."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
TITLE_CHARACTERS = 46
LEGEND_CHARACTERS, LEGEND_KEY = 50, 6
PNG_DPI = 144

ROLES: dict[str, tuple[str, str]] = {
    "ink": ("#1c1e21", "#e8eaed"),
    "soft": ("#5f6670", "#a3abb5"),
    "line": ("#dfe2e6", "#343a41"),
    "paper": ("#ffffff", "#16181b"),
    "better": ("#177245", "#5cc491"),
    "worse": ("#b3261e", "#f28b82"),
    "s0": ("#0072b2", "#5ab4ec"),
    "s1": ("#c65100", "#ff9248"),
    "s2": ("#00805d", "#3fcaa0"),
    "s3": ("#a8487f", "#e79cc6"),
    "s4": ("#8a6100", "#e8b53c"),
    "s5": ("#5b4fb0", "#b1a7f5"),
    "s6": ("#555555", "#b4b4b4"),
}
"""Role → its colour on light and on dark paper. ``s0``, ``s1``… are series, after Okabe and Ito."""

MARKERS = "osD^vPX"

_SENTINELS = {role: f"#0101{16 + at:02x}" for at, role in enumerate(ROLES)}
_LIGHT = {role: light for role, (light, _) in ROLES.items()}

Colours = Mapping[str, str]
"""Role → the colour to draw it with."""


def series(colours: Colours, number: int) -> tuple[str, str]:
    """Colour and marker of a series by its number."""
    count = sum(role[1:].isdigit() for role in ROLES)
    return colours[f"s{number % count}"], MARKERS[number % len(MARKERS)]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One plot of a figure."""

    title: str
    """What tells it from the figure's other panels."""

    describes: str
    """Text for those who do not see it."""

    draw: Callable[[Axes, Colours], None]
    """Draws on axes of 360 points' width."""

    height: float = 250
    """Height in points, without title and legend."""

    legend: bool = False
    """Whether labelled lines are listed below the axes."""


def css() -> str:
    """Custom properties of all roles, for light and for dark paper."""
    light, dark = (
        " ".join(f"--{role}: {pair[scheme]};" for role, pair in ROLES.items()) for scheme in (0, 1)
    )
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    )


def svg(panel: Panel, prefix: str) -> str:
    """A panel as an ``<svg>`` element for a page that has :func:`css`.

    Args:
        prefix: starts every id, which must be unique in the page.
    """
    from html import escape

    text = _rendered(panel, "svg").decode()
    text = re.sub(
        r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.S
    )
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.S)
    text = re.sub(r"<[^>]*>", lambda tag: _plain(tag[0], prefix), text)
    text = re.sub(r"\s*\n\s*", "", text)
    attributes = f'role="img" aria-label="{escape(panel.describes, quote=True)}"'
    return re.sub(r' width="[^"]*" height="[^"]*"', f" {attributes}", text, count=1)


def _plain(tag: str, prefix: str) -> str:
    """A tag of matplotlib's, with short numbers, ids of this panel only, and the page's colours."""
    tag = re.sub(r"\s*\n\s*", " ", tag)
    tag = re.sub(r"\s*font-family: [^;\"]+;?", "", tag)
    tag = re.sub(r"-?\d+\.\d{3,}", lambda found: f"{round(float(found[0]), 2):g}", tag)
    tag = re.sub(r'\s+id="(?![mp][0-9a-f]{8,}")[^"]*"', "", tag)
    tag = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", tag)
    for role, sentinel in _SENTINELS.items():
        tag = tag.replace(sentinel, f"var(--{role})")
    return tag


def alone(element: str) -> str:
    """An SVG element as a file, which looks the same outside the page."""
    style = f"{css()}text {{ font-family: {FONT} }} * {{ stroke-linejoin: round }}"
    end = element.index(">") + 1
    return f"{element[:end]}<style>{style}</style>{element[end:]}\n"


def png(panel: Panel) -> bytes:
    """A panel as PNG on white paper."""
    return _rendered(panel, "png")


def _rendered(panel: Panel, kind: str) -> bytes:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = _SENTINELS if kind == "svg" else _LIGHT
    ink, soft, line = colours["ink"], colours["soft"], colours["line"]
    settings: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "study", "font.size": 11.5,
        "font.family": "DejaVu Sans", "text.color": ink, "axes.labelcolor": ink,
        "axes.edgecolor": soft, "axes.linewidth": 0.8, "xtick.color": soft, "ytick.color": soft,
        "xtick.labelcolor": ink, "ytick.labelcolor": ink, "xtick.labelsize": 11,
        "ytick.labelsize": 11, "axes.labelsize": 11.5, "axes.facecolor": "none", "grid.color": line,
        "grid.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False,
        "legend.frameon": False, "legend.fontsize": 11, "axes.axisbelow": True,
        "axes.unicode_minus": True, "axes.titlesize": 12, "axes.titlelocation": "left",
    }  # fmt: skip
    title = textwrap.fill(panel.title, TITLE_CHARACTERS)
    with rc_context(settings):
        made = Figure(layout="constrained", facecolor="none" if kind == "svg" else colours["paper"])
        FigureCanvasAgg(made)
        axes = made.add_subplot()
        panel.draw(axes, colours)
        _, labels = axes.get_legend_handles_labels() if panel.legend else ([], [])
        columns = _columns(labels)
        lines = (title.count("\n") + 1 if title else 0) + math.ceil(len(labels) / columns)
        made.set_size_inches(POINTS / 72, (panel.height + 17 * lines) / 72)
        if title:
            axes.set_title(title, fontweight="bold", pad=8)
        if labels:
            made.legend(
                loc="outside lower left", ncols=columns, handlelength=1.8, columnspacing=1.4
            )
        target = io.BytesIO()
        stamp = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        made.savefig(target, format=kind, dpi=PNG_DPI, metadata=stamp)
        return target.getvalue()


def _columns(labels: list[str]) -> int:
    """The most columns of a legend that fit below a panel; it is filled column by column."""
    for columns in range(len(labels), 1, -1):
        rows = math.ceil(len(labels) / columns)
        widest = [max(map(len, labels[at : at + rows])) for at in range(0, len(labels), rows)]
        if sum(width + LEGEND_KEY for width in widest) <= LEGEND_CHARACTERS:
            return columns
    return 1
