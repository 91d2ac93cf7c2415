"""Tests of colours: enough contrast on paper of either theme, and the page's variables in their place."""

from __future__ import annotations

import re

from dist_train.report.palette import INK, PAPER, SOFT, of_run, themed, variables


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2.1."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def theme(dark: bool) -> dict[str, str]:
    return dict(re.findall(r"(--[\w]+): (#[0-9a-f]{6});", variables(dark)))


def test_text_can_be_read_in_both_themes() -> None:
    for dark in (False, True):
        colours = theme(dark)
        assert contrast(colours["--ink"], colours["--paper"]) > 7
        assert contrast(colours["--soft"], colours["--paper"]) > 4.5


def test_curves_stand_out_in_both_themes() -> None:
    for dark in (False, True):
        colours = theme(dark)
        runs = [colour for name, colour in colours.items() if name.startswith("--c")]
        assert len(runs) == 6
        assert all(contrast(colour, colours["--paper"]) > 2.5 for colour in runs)


def test_both_themes_have_the_same_variables() -> None:
    assert theme(dark=False).keys() == theme(dark=True).keys()


def test_a_drawing_takes_its_colours_from_the_page() -> None:
    colour, _ = of_run(0)
    drawing = (
        f'<path style="fill: {PAPER}; stroke: {colour}"/>'
        f'<text fill="{INK}"/><text fill="{SOFT}"/><a b="#123456"/>'
    )
    assert themed(drawing) == (
        f'<path style="fill: var(--paper); stroke: var(--c{colour[1:]})"/>'
        '<text fill="var(--ink)"/><text fill="var(--soft)"/><a b="#123456"/>'
    )


def test_the_first_twenty_four_runs_look_different() -> None:
    assert len({of_run(number) for number in range(24)}) == 24
    assert of_run(24) == of_run(0)
