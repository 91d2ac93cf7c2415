"""Tests of the table of workers on a terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from dist_train.watch.live_workers import Workers
from dist_train.watch.records import WorkerFigures


def worker(name: str, rate: float = 80.0, dropped: int = 0) -> WorkerFigures:
    return WorkerFigures(name=name, samples_per_s=rate, staleness=3.0, dropped=dropped, waiting=0.12)


def shown(workers: list[WorkerFigures], width: int = 80, height: int = 24) -> list[str]:
    console = Console(
        file=io.StringIO(),
        force_terminal=True,
        width=width,
        height=height,
        color_system="truecolor",
        legacy_windows=False,
        highlight=False,
    )
    console.print(Workers(workers))
    assert isinstance(console.file, io.StringIO)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    return [line.rstrip() for line in plain.splitlines()]


def many(number: int) -> list[WorkerFigures]:
    return [worker(str(each), rate=16.0 if each == number - 1 else 80.0) for each in range(number)]


def test_a_row_has_rate_staleness_drops_and_waiting() -> None:
    assert shown([worker("0"), worker("6-7", rate=20.0, dropped=1021)]) == [
        "worker  samples/s                  staleness  dropped  waiting",
        "     0       80.0  ━━━━━━━━━━━━━━        3.0        0      12%",
        "   6-7       20.0  ━━━╸━━━━━━━━━━        3.0    1,021      12%",
    ]


def test_a_narrow_terminal_has_no_bars() -> None:
    assert shown([worker("0")], width=50) == [
        "worker  samples/s  staleness  dropped  waiting",
        "     0       80.0        3.0        0      12%",
    ]


@pytest.mark.parametrize("width", [50, 80, 160])
def test_many_workers_do_not_flood_the_screen(width: int) -> None:
    lines = shown(many(64), width=width)
    assert len(lines) == 8
    assert all(len(line) <= width for line in lines)
    # The one slow worker is among those shown, and the others are counted.
    assert any(re.search(r"\b63 +16\.0", line) for line in lines)
    assert re.search(r"(58|52) others +80\.0", lines[-1])


def test_a_wide_terminal_has_two_blocks() -> None:
    assert shown(many(12), width=160)[0].count("worker") == 2
    assert shown(many(5), width=160)[0].count("worker") == 1


@pytest.mark.parametrize("height", [4, 8, 9, 12])
def test_a_low_terminal_keeps_room_for_what_happens(height: int) -> None:
    assert len(shown(many(64), height=height)) <= max(0, height - 6)


def test_workers_that_have_not_begun_are_shown() -> None:
    assert shown([worker("0", rate=0.0)])[1].split()[:2] == ["0", "0.00"]
