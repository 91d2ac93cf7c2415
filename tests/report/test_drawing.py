"""Tests of drawings: what is written into them, and that no text breaks them."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from dist_train.report.charts import Chart, Line, Mark
from dist_train.report.drawing import Drawn, draw
from dist_train.report.measured import AXES, Axis

NAMES = ["plain", "_hidden", "$x^", "<b>&amp;\"'", "日本語", "a_very_long_name/" * 20]


def line(label: str, number: int = 0, values: tuple[float, ...] = (3.0, 2.0, 1.0)) -> Line:
    mean = np.array(values)
    places = np.arange(1.0, len(values) + 1)
    return Line(label, number, dict.fromkeys(AXES, 1000 * places), mean, mean - 0.1, mean + 0.1)


def drawn(
    *lines: Line, axis: Axis = "samples", marks: tuple[Mark, ...] = (), logarithmic: bool = False
) -> Drawn:
    return draw(Chart("loss", "learning", "Training loss", "loss", lines, logarithmic), axis, marks)


def texts(drawing: Drawn) -> list[str]:
    root = ElementTree.fromstring(drawing.svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    return ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_title_units_and_runs_are_named() -> None:
    found = texts(drawn(line("first"), line("second", 1)))
    assert {"Training loss", "loss", "samples", "first", "second"} <= set(found)


@pytest.mark.parametrize(("axis", "words"), [("step", "steps"), ("wall_s", "wall time (minutes)")])
def test_each_axis_has_its_unit(axis: Axis, words: str) -> None:
    assert words in texts(drawn(line("run"), axis=axis))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:Glyph .* missing from font")
def test_any_name_is_drawn_as_it_is(name: str) -> None:
    shown = texts(drawn(line(name)))
    assert any(text.strip("\u200a")[:10] == name[:10] for text in shown)


def test_faults_are_marked_and_explained() -> None:
    mark = Mark("failure", 0, dict.fromkeys(AXES, 1500.0))
    assert "failure" in texts(drawn(line("run"), marks=(mark,)))
    assert "failure" not in texts(drawn(line("run")))


def test_faults_of_runs_that_are_not_drawn_are_not_marked() -> None:
    mark = Mark("failure", 1, dict.fromkeys(AXES, 1500.0))
    assert "failure" not in texts(drawn(line("run"), marks=(mark,)))


def test_ticks_of_a_logarithmic_scale_are_plain_numbers() -> None:
    found = texts(drawn(line("run", values=(100.2, 10.2, 1.2, 0.2)), logarithmic=True))
    assert {"1", "10", "100"} <= set(found)


def test_a_drawing_has_the_colours_of_the_page_and_files_those_of_paper() -> None:
    drawing = drawn(line("run"))
    assert "var(--c0072b2" in drawing.svg
    assert "#0072b2" not in drawing.svg
    assert drawing.png is not None
    assert drawing.png.startswith(b"\x89PNG")


def test_names_inside_a_drawing_differ_from_those_of_others() -> None:
    def ids(drawing: Drawn) -> set[str]:
        return {part.split('"')[0] for part in drawing.svg.split('<clipPath id="')[1:]}

    one, other = ids(drawn(line("run"))), ids(drawn(line("run"), axis="step"))
    assert one
    assert not one & other


def test_the_same_chart_is_drawn_to_the_same_bytes() -> None:
    assert drawn(line("run")) == drawn(line("run"))


def test_one_point_and_points_without_a_place_are_drawn() -> None:
    nowhere = Line("run", 0, dict.fromkeys(AXES, np.array([np.nan])), np.ones(1), np.ones(1), np.ones(1))
    assert "Training loss" in texts(drawn(line("run", values=(1.0,))))
    assert "Training loss" in texts(drawn(nowhere))
