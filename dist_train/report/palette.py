"""The colours of a report, in light and dark, apart for people with any colour vision.

Charts are drawn in the light colours. In the page each of these becomes a variable that has a dark value too.
Runs: Okabe and Ito 2008, without yellow, which white swallows. Uses of time: Paul Tol's schemes, 2021.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, get_args

from dist_train.report.goodput import Use
from dist_train.report.happenings import Kind

# Near black and white, so that no other colour of a chart is taken for one of these.
INK, SOFT, FAINT, PAPER = "#1b1f24", "#59636f", "#dde1e6", "#fefefe"
_GROUND: Mapping[str, str] = {INK: "#e8eaed", SOFT: "#a3acb8", FAINT: "#343b45", PAPER: "#161a20"}
_RUNS: Mapping[str, str] = {
    "#0072b2": "#4ba6e3",
    "#d55e00": "#ff8a3d",
    "#009e73": "#2ec79b",
    "#cc79a7": "#e59cc6",
    "#b07c00": "#f0b429",
    "#3d3d3d": "#d0d0d0",
}
Style = Literal["-", "--", ":", "-."]
STYLES: tuple[Style, ...] = get_args(Style)
USES: Mapping[Use, str] = {
    "computation": "#4477aa",
    "data": "#66ccee",
    "communication": "#228833",
    "stragglers": "#ccbb44",
    "dropped": "#ee6677",
    "validation": "#aa4499",
    "checkpoints": "#ee8866",
    "recovery": "#882255",
    "other": "#b3b8bf",
}
# Text on these is dark; on the others it is light.
PALE: frozenset[Use] = frozenset({"data", "stragglers", "dropped", "checkpoints", "other"})
GLYPHS: Mapping[Kind, str] = {
    "failure": "X",
    "restart": "^",
    "shard": "s",
    "refused": "D",
    "straggler": "v",
    "stop": "P",
    "warning": "o",
}
_THEMED = {**_GROUND, **_RUNS}
_COLOUR = re.compile("|".join(_THEMED))


def of_run(number: int) -> tuple[str, Style]:
    """Return the colour and the style of the curves of a run, different for the first 24."""
    colours = list(_RUNS)
    return colours[number % len(colours)], STYLES[number // len(colours) % len(STYLES)]


def themed(svg: str) -> str:
    """Replace the light colours of a drawing by the page's variables."""
    return _COLOUR.sub(lambda match: f"var({_variable(match[0])})", svg)


def variables(dark: bool) -> str:
    """Return the declarations of the page's variables, as CSS."""
    return " ".join(
        f"{_variable(light)}: {at_night if dark else light};" for light, at_night in _THEMED.items()
    )


def _variable(light: str) -> str:
    return {INK: "--ink", SOFT: "--soft", FAINT: "--faint", PAPER: "--paper"}.get(light, f"--c{light[1:]}")
