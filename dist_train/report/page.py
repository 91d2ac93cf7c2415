"""The page: one HTML file with everything in it, which needs neither network nor JavaScript."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from dist_train.report.drawing import Drawn
from dist_train.report.measured import Axis
from dist_train.report.palette import variables
from dist_train.report.tables import Table

HERE = Path(__file__).parent
TEMPLATE, STYLE = "page.html.jinja", "page.css"


@dataclass(frozen=True)
class Charts:
    """A section of charts: those that are drawn over every axis, and those that have none of these."""

    title: str
    charts: Sequence[Mapping[Axis, Drawn]]
    further: Sequence[Drawn] = ()


@dataclass(frozen=True)
class Page:
    """What is on the page, from top to bottom; ``trace`` and ``images`` are addresses beside it."""

    title: str
    notes: Sequence[str]
    headline: Table
    sections: Sequence[Charts]
    times: Table
    time_charts: Sequence[Drawn]
    faults: Table
    differences: Table
    configurations: Mapping[str, str]
    trace: str
    images: Sequence[str]


def html(page: Page) -> str:
    """Return the page; all text in it is escaped, drawings are taken as they are."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        page=page, style=(HERE / STYLE).read_text(), light=variables(dark=False), dark=variables(dark=True)
    )
