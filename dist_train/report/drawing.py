"""Charts drawn with matplotlib: as SVG that fits the page's theme and as PNG."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO, StringIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator

from dist_train.report import happenings
from dist_train.report.charts import Chart, Line, Mark
from dist_train.report.measured import Axis
from dist_train.report.palette import FAINT, GLYPHS, INK, PAPER, SOFT, of_run, themed

# Inches; a point of text is then legible on a phone, where a chart is as wide as the screen.
WIDTH, HEIGHT = 4.5, 2.75
LEGEND_ROW = 0.165
DOTS_PER_INCH = 160
LONGEST_LABEL = 44
AXIS_IN_WORDS: dict[Axis, str] = {"samples": "samples", "step": "steps", "wall_s": "wall time"}
# matplotlib's settings by name, of more types than one.
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "svg.fonttype": "none",
    # Names of runs are text, whatever characters they have.
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 11,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 1.8,
    "lines.linewidth": 1.4,
    "path.simplify_threshold": 0.3,
}


@dataclass(frozen=True)
class Drawn:
    """A chart as an element of the page and, where asked for, as the bytes of a PNG file."""

    name: str
    svg: str
    png: bytes | None = None


def draw(chart: Chart, axis: Axis, marks: Sequence[Mark]) -> Drawn:
    """Draw a chart over one axis, with the faults on it; as PNG over samples alone."""
    drawn = {line.number for line in chart.lines}
    own = [mark for mark in marks if mark.number in drawn]
    divisor, unit = _unit(chart, axis)
    with matplotlib.rc_context(STYLE):
        figure, axes = sheet(chart.title, _legend(chart, own))
        for line in chart.lines:
            _curve(axes, line, axis, divisor, chart.logarithmic)
        _marks(axes, own, axis, divisor)
        axes.set_xlabel(f"{AXIS_IN_WORDS[axis]}{unit}")
        axes.set_ylabel(chart.unit)
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=axis != "wall_s"))
        if axis != "wall_s":
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if chart.logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            _linear(axes, chart)
        name = chart.name if axis == "samples" else f"{chart.name}-{axis}"
        return rendered(figure, name, chart.title, as_png=axis == "samples")


def sheet(title: str, handles: Sequence[Any], height: float = HEIGHT) -> tuple[Figure, Axes]:
    """Return a figure of the report's size with axes, a title, and a legend below as high as it has to be."""
    columns = _columns([str(handle.get_label()) for handle in handles])
    rows = -(-len(handles) // columns)
    whole = height + rows * LEGEND_ROW
    figure = Figure(figsize=(WIDTH, whole))
    # Edges by hand: to let matplotlib measure all text takes as long as the drawing.
    axes = figure.add_axes((0.135, (rows * LEGEND_ROW + 0.5) / whole, 0.82, (height - 0.88) / whole))
    axes.set_title(title, color=INK, x=-0.13, y=1.0)
    if handles:
        names = [_label(str(handle.get_label())) for handle in handles]
        figure.legend(handles, names, loc="lower left", ncols=columns, bbox_to_anchor=(0.015, 0.0),
                      labelspacing=0.35, columnspacing=1.4, borderaxespad=0.2)  # fmt: skip
    return figure, axes


def rendered(figure: Figure, name: str, title: str, as_png: bool = True) -> Drawn:
    """Write a figure as SVG for the page and, if asked, as PNG."""
    text, image = StringIO(), BytesIO()
    # Names inside a drawing are made from this, and must differ from those of the page's other drawings.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    if as_png:
        figure.savefig(image, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return Drawn(name, in_page(text.getvalue(), title), image.getvalue() or None)


def in_page(svg: str, title: str) -> str:
    """Make of an SVG file an element of a page: as wide as its place, in the page's colours."""
    element = svg[svg.index("<svg") :]
    head, rest = element.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    assert view is not None  # matplotlib writes one
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    # Verdana is as wide as the font that was measured with.
    rest = rest.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana")
    label = escape(title, quote=True)
    return (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {view[0]} role="img" aria-label="{label}">'
        + themed(rest)
    )


def _unit(chart: Chart, axis: Axis) -> tuple[float, str]:
    """Return what a place is divided by, and the unit in which the axis counts then."""
    if axis != "wall_s":
        return 1.0, ""
    longest = max((float(line.at[axis].max()) for line in chart.lines), default=0.0)
    for seconds, name in ((86_400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if longest > 3 * seconds:
            return seconds, f" ({name})"
    return 1.0, " (seconds)"


def _curve(axes: Axes, line: Line, axis: Axis, divisor: float, logarithmic: bool) -> None:
    colour, style = of_run(line.number)
    places = line.at[axis] / divisor
    if np.any(line.lowest < line.highest):
        axes.fill_between(places, line.lowest, line.highest, color=colour, alpha=0.18, linewidth=0)
    few = len(places) <= 30
    mean = np.maximum(line.mean, line.lowest) if logarithmic else line.mean
    axes.plot(places, mean, color=colour, linestyle=style, marker="o" if few else None, markersize=2.4)


def _marks(axes: Axes, marks: Sequence[Mark], axis: Axis, divisor: float) -> None:
    """Draw each fault as a thin line in the run's colour, with its kind's glyph above the axes."""
    for mark in marks:
        colour, _ = of_run(mark.number)
        place = mark.at[axis] / divisor
        axes.axvline(place, color=colour, linewidth=0.7, alpha=0.55, linestyle=(0, (3, 2)))
        axes.plot(place, 1.035, GLYPHS[mark.kind], transform=axes.get_xaxis_transform(), color=colour,
                  markersize=6, markeredgewidth=0.5, markeredgecolor=PAPER, clip_on=False)  # fmt: skip


def _legend(chart: Chart, marks: Sequence[Mark]) -> list[Line2D]:
    runs = [
        Line2D([], [], color=of_run(line.number)[0], linestyle=of_run(line.number)[1], label=line.label)
        for line in chart.lines
    ]
    kinds = [kind for kind in happenings.KINDS if any(mark.kind == kind for mark in marks)]
    faults = [
        Line2D([], [], color=SOFT, marker=GLYPHS[kind], linestyle="", label=happenings.IN_WORDS[kind])
        for kind in kinds
    ]
    return [*runs, *faults]


def _linear(axes: Axes, chart: Chart) -> None:
    lowest = min(float(line.lowest.min()) for line in chart.lines)
    highest = max(float(line.highest.max()) for line in chart.lines)
    if lowest >= 0 and lowest < 0.5 * highest:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    if highest >= 1000 or 0 < highest < 1e-3:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))


def _columns(labels: Sequence[str]) -> int:
    """Return in how many columns the entries of a legend fit side by side."""
    longest = max((min(len(label), LONGEST_LABEL) for label in labels), default=1)
    return max(1, min(len(labels), 64 // (longest + 7)))


def _label(label: str) -> str:
    """Shorten a long name in the middle; one that begins with _ would be left out of a legend."""
    half = LONGEST_LABEL // 2
    short = label if len(label) <= LONGEST_LABEL else f"{label[: half - 1]}…{label[-half:]}"
    return f"\u200a{short}" if short.startswith("_") else short
