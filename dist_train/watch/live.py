"""The display on a terminal: one bar for the run, and above it what has happened."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.box import ROUNDED
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dist_train.watch.figures import (
    GAP,
    Figure,
    Length,
    as_text,
    fitting,
    one_line,
    outcome,
    places,
    position,
    progress,
    smoothed,
    validation,
)
from dist_train.watch.live_workers import Workers
from dist_train.watch.records import TrainLine, ValLine
from dist_train.watch.server_figures import server_outcome, server_progress

STATUS_STYLES = {"done": "bold green", "interrupted": "bold yellow", "failed": "bold red"}
NARROWEST_BAR = 8
# Drawing takes half a millisecond, which short steps would notice.
REDRAW_S = 0.1


class LiveDisplay:
    """Redraws a few lines at the bottom when training lines come; everything else scrolls above."""

    def __init__(self, length: Length, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._length = length
        self._console = console
        self._clock = clock
        self._drawn = -math.inf
        self._rate: float | None = None
        # Redrawn by the calls alone: a thread would take time from the steps.
        self._live = Live(
            Text("waiting for the first steps", style="dim"),
            console=console,
            auto_refresh=False,
            redirect_stderr=sys.stderr.isatty(),
        )

    def start(self, facts: Mapping[str, str]) -> None:
        self._console.print(rows(facts), "")
        self._live.start(refresh=True)
        # Live hides the cursor, and a worker that is killed could never show it again.
        self._console.show_cursor(True)

    def train(self, line: TrainLine) -> None:
        self._rate = smoothed(self._rate, line.samples_per_s)
        now = self._clock()
        due = now >= self._drawn + REDRAW_S
        self._drawn = now if due else self._drawn
        bar = Bar(line, self._length, self._rate)
        self._live.update(bar if line.workers is None else Group(bar, Workers(line.workers)), refresh=due)

    def validation(self, line: ValLine) -> None:
        figures = styled(validation(line, self._length), "")
        self._console.print(Text.assemble(("validation", "bold cyan"), GAP, figures))

    def note(self, text: str) -> None:
        self._console.print(Text(one_line(text)))

    def warning(self, text: str) -> None:
        self._console.print(Text.assemble(("warning", "bold yellow"), GAP, one_line(text)))

    def finish(self, summary: Mapping[str, Any], resume: str | None = None) -> None:
        self._live.transient = True
        self.close()
        self._console.print("")
        self._console.print(summary_table({**outcome(summary), **server_outcome(summary)}))
        further = {"to continue": resume} if resume else {}
        for label, text in {**places(summary), **further}.items():
            # In one piece, to be copied, however long it is.
            self._console.print(Text.assemble((f"{label:<13}{GAP}", "dim"), text), soft_wrap=True)

    def close(self) -> None:
        self._live.stop()


class Bar:
    """The live lines: how far the run is, how it is doing, and how its server is, if it has one, each cut to
    the terminal's width."""

    def __init__(self, line: TrainLine, length: Length, rate: float) -> None:
        self._step, *self._further = position(line, length, rate)
        self._lines = [figures for figures in (progress(line), server_progress(line)) if figures]
        self._bar = ProgressBar(total=max(1, length.steps), completed=line.step, complete_style="cyan")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        percent = f"{self._bar.percentage_completed or 0:3.0f}%"
        taken = len(as_text([self._step])) + len(GAP) * 3 + len(percent) + NARROWEST_BAR
        further = fitting(self._further, width - taken)
        grid = Table.grid(expand=True, padding=(0, len(GAP), 0, 0), pad_edge=False)
        for ratio in (None, 1, None, None):
            grid.add_column(ratio=ratio, no_wrap=True)
        grid.add_row(styled([self._step]), self._bar, Text(percent), styled(further))
        yield grid
        for figures in self._lines:
            text = styled(fitting(figures, width))
            text.truncate(width, overflow="ellipsis")
            yield text


def styled(figures: Sequence[Figure], style: str = "bold") -> Text:
    """Write figures with faint labels."""
    return Text(GAP).join(Text.assemble((label, "dim"), " ", (value, style)) for label, value in figures)


def rows(facts: Mapping[str, str]) -> Table:
    """Lay out labels and texts in two columns; a long text is wrapped beside its label."""
    return two_columns(Table.grid(padding=(0, len(GAP), 0, 0)), facts.items())


def summary_table(facts: Mapping[str, str]) -> Table:
    """Lay out the rows of the summary in a box, the status in its colour."""
    table = Table(box=ROUNDED, show_header=False, border_style="dim")
    return two_columns(table, facts.items())


def two_columns(table: Table, facts: Iterable[tuple[str, str]]) -> Table:
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in facts:
        style = STATUS_STYLES.get(text, "") if label == "status" else ""
        table.add_row(label, Text(one_line(text), style=style))
    return table
