"""The plots of docs/evidence.md: means over seeds with their spread, as PNG beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from dist_train.report.palette import INK, of_run
from experiments.runs import ROOT, MeanAndSpread

FOLDER = ROOT / "docs/evidence"
MOST_TICKS = 10


@dataclass(frozen=True)
class Axis:
    """What an axis is called, and whether it is logarithmic."""

    name: str
    log: bool = False


# By x, the mean and the spread; a line without spread is a prediction.
Line = Mapping[float, MeanAndSpread | float]


def curves(name: str, title: str, x: Axis, y: Axis, lines: Mapping[str, Line]) -> None:
    """Draw one curve for each entry of ``lines``, with bars of one standard deviation; as NAME.png."""
    figure, axes = pyplot.subplots(figsize=(6.4, 3.8), dpi=110, layout="constrained")
    for number, (label, line) in enumerate(lines.items()):
        colour, _ = of_run(number)
        known = [value for value in line.values() if isinstance(value, MeanAndSpread)]
        if known:
            means, spreads = [v.mean for v in known], [v.deviation for v in known]
            axes.errorbar(
                list(line), means, spreads, label=label, color=colour, marker="o", ms=4, capsize=3, lw=1.6
            )
        else:
            predicted = [value for value in line.values() if not isinstance(value, MeanAndSpread)]
            axes.plot(list(line), predicted, label=label, color=colour, ls="--", lw=1.2)
    if x.log:
        axes.set_xscale("log")
    _plain_ticks(axes.xaxis, sorted({at for line in lines.values() for at in line}))
    if y.log:
        axes.set_yscale("log", nonpositive="clip")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(
            FuncFormatter(lambda value, _: f"{value:g}" if _is_narrow(axes) else "")
        )
    axes.set_xlabel(x.name)
    axes.set_ylabel(y.name)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=9)
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / f"{name}.png")
    pyplot.close(figure)


def _is_narrow(axes: Axes) -> bool:
    """Say whether the y axis is shorter than a decade, so that it has next to no major ticks."""
    low, high = axes.get_ylim()
    return high < 10 * low


def _plain_ticks(axis: matplotlib.axis.Axis, ticks: Sequence[float]) -> None:
    axis.set_ticks(ticks[:: math.ceil(len(ticks) / MOST_TICKS)])
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
