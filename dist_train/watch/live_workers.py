"""The table of workers under the bar: each worker's rate, staleness, drops and waiting, kept small."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dist_train.watch.figures import GAP, quantity
from dist_train.watch.records import WorkerFigures
from dist_train.watch.server_figures import telling, together

HEADINGS = ("worker", "samples/s", "", "staleness", "dropped", "waiting")
MOST_ROWS = 6
# Columns of the terminal that one block of rows takes at least.
WIDTH_OF_A_BLOCK = 72
# Columns below which the rates have no bars.
WIDTH_WITH_BARS = 60
BAR = 14
# Lines of the terminal that are left to what scrolls above.
LINES_ABOVE = 8


class Workers:
    """Shows as many workers as there is room for, the most telling first to stay; the others in one row."""

    def __init__(self, workers: Sequence[WorkerFigures]) -> None:
        self._workers = workers

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = min(MOST_ROWS, options.size.height - LINES_ABOVE)
        if height < 1:
            return
        blocks = max(1, options.max_width // WIDTH_OF_A_BLOCK)
        shown, others = telling(self._workers, blocks * height)
        rows = max(height, -(-len(shown) // blocks))
        top = max(worker.samples_per_s for worker in self._workers)
        bars = options.max_width >= WIDTH_WITH_BARS
        grid = Table.grid(padding=(0, 2 * len(GAP), 0, 0))
        tables = [block(shown[start : start + rows], top, bars) for start in range(0, len(shown), rows)]
        if others:
            add_row(tables[-1], together(others), top, bars, style="dim")
        grid.add_row(*tables)
        yield grid


def block(workers: Sequence[WorkerFigures], top: float, bars: bool) -> Table:
    """Lay out one row for each worker; bars are as long as the share of the fastest worker's rate."""
    table = Table(box=None, padding=(0, len(GAP), 0, 0), pad_edge=False, header_style="dim")
    for heading in HEADINGS:
        if heading or bars:
            table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for worker in workers:
        add_row(table, worker, top, bars)
    return table


def add_row(table: Table, worker: WorkerFigures, top: float, bars: bool, style: str = "") -> None:
    """Add one worker's row, with a bar if ``bars``, or in ``style`` that of the others together."""
    rate = ProgressBar(total=max(top, 1e-9), completed=worker.samples_per_s, width=BAR, complete_style="cyan")
    table.add_row(
        Text(worker.name),
        quantity(worker.samples_per_s),
        *((rate,) if bars else ()),
        f"{worker.staleness:.1f}",
        Text(f"{worker.dropped:,}", style="yellow" if worker.dropped and not style else ""),
        f"{worker.waiting:.0%}",
        style=style,
    )
