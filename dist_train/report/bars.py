"""Charts without an axis of progress: where each worker's time went, and how stale gradients were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dist_train.report import goodput
from dist_train.report.charts import Bars
from dist_train.report.drawing import STYLE, Drawn, rendered, sheet
from dist_train.report.goodput import USES, Spent
from dist_train.report.palette import INK, PALE, PAPER, of_run
from dist_train.report.palette import USES as COLOURS

# Of more workers, those with the least goodput are shown, and the mean of all.
MOST_WORKERS = 12
BAR = 0.24
# A share that is smaller has no room for its percentage.
LEAST_NAMED = 0.085
MOST_BINS = 24


def draw_time(name: str, label: str, workers: Mapping[str, Spent]) -> Drawn:
    """Draw where the time of a run's workers went, one bar a worker."""
    shown = _shown(workers)
    uses = [use for use in USES if any(spent[use] > 0 for spent in shown.values())]
    patches = [Patch(color=COLOURS[use], label=goodput.IN_WORDS[use]) for use in uses]
    title = f"Time of each worker: {label}"
    with matplotlib.rc_context(STYLE):
        figure, axes = sheet(_fitting(title), patches, height=0.95 + BAR * len(shown))
        lefts = np.zeros(len(shown))
        wholes = np.array([sum(spent.values()) or 1.0 for spent in shown.values()])
        for use in uses:
            shares = np.array([spent[use] for spent in shown.values()]) / wholes
            axes.barh(range(len(shown)), shares, left=lefts, color=COLOURS[use], height=0.78,
                      edgecolor=PAPER, linewidth=0.5)  # fmt: skip
            for place, share in enumerate(shares):
                if share >= LEAST_NAMED:
                    axes.text(lefts[place] + share / 2, place, f"{share:.0%}", ha="center", va="center",
                              fontsize=7, color="#111111" if use in PALE else "#ffffff")  # fmt: skip
            lefts += shares
        axes.set_yticks(range(len(shown)), list(shown), color=INK)
        axes.invert_yaxis()
        if len(shown) > 1:
            axes.set_ylabel("worker")
        axes.set_xlim(0, 1)
        axes.grid(visible=False)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("share of the time")
        return rendered(figure, name, title)


def draw_staleness(runs: Sequence[Bars]) -> Drawn:
    """Draw how stale the gradients of all runs were, as shares of each run's gradients."""
    patches = [Patch(color=of_run(run.number)[0], label=run.label) for run in runs]
    width = _bin_width(max(max(run.shares) for run in runs))
    title = "Staleness of the gradients applied"
    with matplotlib.rc_context(STYLE):
        figure, axes = sheet(title, patches)
        for place, run in enumerate(runs):
            bins: dict[int, float] = {}
            for value, share in run.shares.items():
                bins[value // width] = bins.get(value // width, 0.0) + share
            thick = 0.84 / len(runs)
            lefts = [each - 0.42 + thick * (place + 0.5) for each in bins]
            axes.bar(lefts, list(bins.values()), width=thick, color=of_run(run.number)[0])
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        if width > 1:
            axes.xaxis.set_major_formatter(lambda tick, _: f"{tick * width:.0f}")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel(
            "staleness (updates)" if width == 1 else f"staleness (updates, from; {width} in a bar)"
        )
        axes.set_ylabel("share of gradients")
        return rendered(figure, "staleness", title)


def _shown(workers: Mapping[str, Spent]) -> dict[str, Spent]:
    """Choose which workers to show; of many, in their order, those that lose the most time."""
    if len(workers) <= MOST_WORKERS:
        return dict(workers)
    worst = sorted(workers, key=lambda name: goodput.goodput(workers[name]) or 0.0)[:MOST_WORKERS]
    return {name: workers[name] for name in workers if name in worst} | {"mean": goodput.mean(workers)}


def _bin_width(highest: int) -> int:
    return highest // MOST_BINS + 1


def _fitting(title: str) -> str:
    return title if len(title) <= 58 else f"{title[:57]}…"
