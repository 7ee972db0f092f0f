"""Gantt chart of a plan's schedule: a self-contained SVG for light and dark backgrounds."""

from __future__ import annotations

from html import escape

from pipelines.dag.plan import Plan
from pipelines.formatting import duration, number
from pipelines.planning.cost import CPU
from pipelines.planning.forecast import Forecast

ROW, BAR, TOP, LEFT, WIDTH, RIGHT = 22, 14, 64, 220, 720, 90
"""Pixels: height of a row, of its bar and of the header; width of the names, the time axis and the
right margin."""

COLOURS = ("#2a78d6", "#1baf7a", "#c98500", "#9085e9", "#d55181")
"""Colours of the GPU groups in their order; repeated if there are more groups."""

GREY = "#8c959f"  # CPUs

TICKS = 8
ROUND_STEPS = (
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    10800,
    21600,
    43200,
    86400,
)

STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #24292f }
  .soft { fill: #6e7781 } .line { stroke: #d0d7de } .paper { fill: #ffffff }
  .critical { stroke: #24292f; stroke-width: 1.5 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .soft { fill: #8b949e } .line { stroke: #30363d }
    .paper { fill: #0d1117 } .critical { stroke: #e6edf3 }
  }
"""


def svg(plan: Plan, forecast: Forecast) -> str:
    """The chart as SVG: one row per node in order of start; critical nodes are outlined."""
    schedule, span = forecast.schedule, forecast.schedule.makespan or 1.0
    groups = list(forecast.cluster.groups)
    timed = [n for n in schedule.starts if forecast.costs[n].seconds]
    width, height = LEFT + WIDTH + RIGHT, TOP + ROW * len(timed) + 16

    def x(seconds: float) -> float:
        return LEFT + WIDTH * seconds / span

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">',
        f"<title>{escape(plan.spec.name)}: schedule of its nodes</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{width}" height="{height}"/>',
        *_legend(forecast, groups),
    ]
    for seconds in ticks(span):
        out.append(
            f'<line class="line" x1="{x(seconds):.1f}" x2="{x(seconds):.1f}" y1="{TOP - 6}" '
            f'y2="{height - 12}"/><text class="soft" x="{x(seconds):.1f}" y="{TOP - 12}" '
            f'text-anchor="middle">{_tick(seconds)}</text>'
        )
    for row, name in enumerate(timed):
        cost, y = forecast.costs[name], TOP + ROW * row
        start, end = schedule.starts[name], schedule.end(name)
        css_class = "critical" if name in schedule.critical else ""
        held = f"{cost.gang:g} CPUs"
        if cost.group != CPU:
            held = f"{cost.gang:g} of {cost.group}, {number(cost.gpu_hours)} GPU-hours"
        tooltip = f"{name}: {duration(cost.seconds)} on {held}"
        out.append(
            f'<g><title>{escape(tooltip)}</title><text x="{LEFT - 10}" y="{y + 12}" '
            f'text-anchor="end">{escape(name)}</text>'
            f'<rect class="{css_class}" x="{x(start):.1f}" y="{y + 1}" height="{BAR}" rx="3" '
            f'width="{max(2.0, x(end) - x(start)):.1f}" fill="{_colour(cost.group, groups)}"/>'
            f'<text class="soft" x="{x(end) + 6:.1f}" y="{y + 12}">{duration(cost.seconds)}</text>'
            "</g>"
        )
    return "\n".join([*out, "</svg>", ""])


def _colour(group: str, groups: list[str]) -> str:
    return GREY if group == CPU else COLOURS[groups.index(group) % len(COLOURS)]


def _legend(forecast: Forecast, groups: list[str]) -> list[str]:
    """The summary line, and each group's colour and idle time."""
    schedule = forecast.schedule
    head = (
        f"{duration(schedule.makespan)}, {schedule.above * 100:.1f} % above the lower bound; "
        f"outlined: critical path, {duration(schedule.critical_seconds)}"
    )
    out, at = [f'<text x="10" y="18">{escape(head)}</text>'], 10
    for group in forecast.groups:
        label = f"{group}, idle {schedule.idle(group) * 100:.0f} %"
        out.append(
            f'<rect x="{at}" y="27" width="12" height="12" rx="3" '
            f'fill="{_colour(group, groups)}"/>'
            f'<text class="soft" x="{at + 18}" y="37">{escape(label)}</text>'
        )
        at += 40 + 7 * len(label)
    return out


def ticks(span: float) -> list[float]:
    """Times of the axis's ticks, in seconds: at most eight, at round intervals."""
    days = 86400 * -(-span // (86400 * TICKS))
    step = next((n for n in ROUND_STEPS if span / n <= TICKS), days)
    return [i * step for i in range(int(span // step) + 1)]


def _tick(seconds: float) -> str:
    if seconds >= 3600 or not seconds:
        return f"{seconds / 3600:g} h"
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"
