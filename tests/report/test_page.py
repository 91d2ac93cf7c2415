"""Tests of the page: everything is in it, and text stays text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from dist_train.report.drawing import Drawn
from dist_train.report.page import Charts, Page, html
from dist_train.report.tables import Table

EVIL = "<script>alert('x')</script>&\""
DRAWN = Drawn("loss", '<svg viewBox="0 0 1 1"></svg>')
TABLE = Table(("", EVIL), ((EVIL, EVIL),))
EMPTY = Table((), ())


def page(sections: list[Charts], configurations: dict[str, str]) -> str:
    found = Page(
        title=EVIL,
        notes=[EVIL],
        headline=TABLE,
        sections=sections,
        times=TABLE,
        time_charts=[DRAWN],
        faults=Table(("run", "after", "step", "what", "in its words"), ((EVIL,) * 5,), left_out=1234),
        differences=TABLE,
        configurations=configurations,
        trace=f"{EVIL}/trace.json",
        images=[f"{EVIL}.png"],
    )
    return html(found)


SECTION = Charts("Learning", [{"samples": DRAWN, "step": DRAWN, "wall_s": DRAWN}], [DRAWN])


class Tags(HTMLParser):
    """Collects what a browser would see as elements, and their addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]


def seen(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    return tags


def test_text_stays_text_wherever_it_stands() -> None:
    found = page([SECTION], {EVIL: EVIL})
    assert "script" not in seen(found).names
    assert "<script" not in found
    assert found.count("&lt;script&gt;") >= 14


def test_it_loads_nothing() -> None:
    found = page([SECTION], {"run": "a: 1"})
    tags = seen(found)
    assert not {"link", "img", "iframe", "script"} & set(tags.names)
    assert "@import" not in found
    assert not re.search(r"url\((?!#)", found)
    beside = [address for address in tags.addresses if address != "https://ui.perfetto.dev"]
    assert beside == [f"{EVIL}/trace.json", f"{EVIL}.png"]


def test_each_chart_is_there_for_every_axis_to_choose() -> None:
    found = page([SECTION], {})
    for axis in ("samples", "step", "wall_s"):
        assert f'id="axis-{axis}"' in found
        assert f'<div class="by-{axis}"><svg' in found
        assert f"#axis-{axis}:checked ~ section .by-{axis}" in found


def test_both_themes_are_there() -> None:
    found = page([SECTION], {})
    assert found.count("--paper:") == 2
    assert "prefers-color-scheme: dark" in found


def test_without_charts_there_is_nothing_to_choose() -> None:
    assert "<nav" not in page([], {})


def test_faults_that_are_left_out_are_counted() -> None:
    assert "and 1,234 more" in page([], {})
