"""From what runs have measured to a page and its drawings: the only part that needs what draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dist_train.report import charts, page, tables
from dist_train.report.bars import draw_staleness, draw_time
from dist_train.report.charts import Section
from dist_train.report.drawing import Drawn, draw
from dist_train.report.measured import AXES
from dist_train.report.page import Charts, Page
from dist_train.report.subjects import Subject
from dist_train.report.tables import Reported

TITLES: Mapping[Section, str] = {
    "learning": "Learning and speed",
    "gradients": "Stale and dropped gradients",
    "teaching": "Replicas that teach one another",
}
# Beyond so many runs and replicas, charts of each one's workers would be all there is to see.
MOST_TIME_CHARTS = 12


@dataclass(frozen=True)
class Contents:
    """The page, and the drawings that are files as well."""

    html: str
    images: tuple[Drawn, ...]


def contents(runs: Sequence[Reported], found: Sequence[Subject], beside: str, trace: str) -> Contents:
    """Draw everything; ``beside`` is what the addresses of the other files begin with."""
    sections = _sections(runs)
    timed = [run for run in runs if run.spent][:MOST_TIME_CHARTS]
    times = [draw_time(f"time-{place}", run.measured.label, run.spent) for place, run in enumerate(timed)]
    over_axes = [chart["samples"] for section in sections for chart in section.charts]
    images = (*over_axes, *(drawn for section in sections for drawn in section.further), *times)
    whole = Page(
        title=", ".join(subject.label for subject in found),
        notes=tables.notes(runs),
        headline=tables.headline(runs),
        sections=sections,
        times=tables.times(runs),
        time_charts=times,
        faults=tables.faults(runs),
        differences=tables.differences(found),
        configurations={subject.label: subject.configuration for subject in found if subject.configuration},
        trace=f"{beside}{trace}",
        images=[f"{beside}{drawn.name}.png" for drawn in images],
    )
    return Contents(page.html(whole), images)


def _sections(runs: Sequence[Reported]) -> list[Charts]:
    measured = [run.measured for run in runs]
    marks = [mark for number, run in enumerate(measured) for mark in charts.marks(run, number)]
    histograms = charts.staleness(measured)
    by_section: dict[Section, list[dict[Any, Drawn]]] = {section: [] for section in TITLES}
    for chart in charts.charts(measured):
        by_section[chart.section].append({axis: draw(chart, axis, marks) for axis in AXES})
    further: dict[Section, list[Drawn]] = {"gradients": [draw_staleness(histograms)] if histograms else []}
    return [
        Charts(TITLES[section], drawn, further.get(section, []))
        for section, drawn in by_section.items()
        if drawn or further.get(section)
    ]
