"""Tests of the display on a terminal."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from dist_train.watch.figures import Length
from dist_train.watch.live import Bar, LiveDisplay
from dist_train.watch.records import StepTimes, TrainLine, ValLine, WorkerFigures
from dist_train.watch.tally import CAUSES

LENGTH = Length(steps=460, samples=29440, epochs=20)
TRAIN = TrainLine(
    step=230,
    samples=14720,
    epoch=10.0,
    wall_s=2.0,
    loss=2.1,
    lr=0.1,
    samples_per_s=320.0,
    samples_per_s_per_worker=160.0,
    data_wait=0.021,
    times=StepTimes(data=0.1, forward=0.1, backward=0.1, communication=0.1, update=0.1),
    memory_mb=300.0,
)
VAL = ValLine(
    step=46, samples=2944, epoch=2.0, wall_s=2.0, loss=0.25, metrics={"accuracy": 0.9722}, seconds=0.3
)
SUMMARY = {
    "status": "done",
    "mode": "sync",
    "workers": 2,
    "replicas": 1,
    "steps": 460,
    "samples": 29440,
    "wall_s": 83.0,
    "samples_per_s": 354.0,
    "restarts": 0,
    "val": {"loss": 0.25, "accuracy": 0.9722},
    "run_dir": "/a/very/long/path/" + "x" * 80,
}
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def terminal(width: int = 80) -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=True,
        width=width,
        highlight=False,
        color_system="truecolor",
        legacy_windows=False,
    )


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def bar(width: int, line: TrainLine = TRAIN) -> list[str]:
    console = terminal(width)
    console.print(Bar(line, LENGTH, 320.0))
    return plain(written(console)).splitlines()


def test_the_bar_at_80_columns() -> None:
    first, second = bar(80)
    shown = r"step 230/460  [━╸╺]{31}   50%  ETA     46s  epoch 10.00/20"
    assert re.fullmatch(shown, first)
    assert len(first) == 80
    assert second.rstrip() == "loss 2.1000  lr 0.1  samples/s 320 (160 per worker)  data wait 2%"


@pytest.mark.parametrize("width", [20, 30, 40, 50, 60, 80, 120, 200])
def test_the_bar_never_takes_more_than_two_lines(width: int) -> None:
    lines = bar(width)
    assert len(lines) == 2
    assert all(len(line) <= width for line in lines)


def test_a_narrow_terminal_keeps_the_most_important_figures() -> None:
    first, second = bar(45)
    assert "epoch" not in first
    assert "ETA" in first
    assert second.rstrip() == "loss 2.1000  lr 0.1"


def test_the_bar_keeps_its_place_while_the_figures_grow() -> None:
    early = replace(TRAIN, step=7, samples=448, epoch=0.3)
    assert bar(80, early)[0].index("ETA") == bar(80)[0].index("ETA")


def test_short_steps_do_not_wait_for_the_drawing() -> None:
    console = terminal()
    seconds = iter([5.0, 5.05, 5.125])
    display = LiveDisplay(LENGTH, console, clock=lambda: next(seconds))
    display.start({})
    for step in (11, 12, 13):
        display.train(replace(TRAIN, step=step))
    shown = plain(written(console))
    display.close()
    assert [step for step in (11, 12, 13) if f"{step}/460" in shown] == [11, 13]


def test_the_last_line_is_drawn_in_the_end() -> None:
    console = terminal()
    display = LiveDisplay(LENGTH, console, clock=lambda: 5.0)
    display.start({})
    for step in (11, 12):
        display.train(replace(TRAIN, step=step))
    display.close()
    assert "step  12/460" in plain(written(console))


SERVED = replace(
    TRAIN,
    extras={
        **dict.fromkeys(("computed", "applied", "refused", "requeued"), 100),
        **{f"waiting_{cause}": 1.0 for cause in CAUSES},
        "staleness": 1.5,
        "staleness_p99": 4,
        "dropped": 7,
        "refused": 0,
    },
    workers=tuple(
        WorkerFigures(name=str(number), samples_per_s=80.0, staleness=1.5, dropped=0, waiting=0.1)
        for number in range(2)
    ),
)


def test_a_server_has_a_line_and_its_workers_a_table_below_the_bar() -> None:
    console = terminal(80)
    display = LiveDisplay(LENGTH, console)
    display.start({})
    display.train(SERVED)
    display.close()
    lines = [line.rstrip() for line in plain(written(console)).splitlines()]
    assert lines[-5].startswith("loss 2.1000  lr 0.1  samples/s 320")
    assert lines[-4] == "staleness 1.5 (p99 4)  dropped 7 (7.0%)  waiting 10% (quorum 2%)"
    assert lines[-3].split() == ["worker", "samples/s", "staleness", "dropped", "waiting"]
    assert [line.split()[:2] for line in lines[-2:]] == [["0", "80.0"], ["1", "80.0"]]


@pytest.mark.parametrize("width", [20, 30, 40, 80, 160])
def test_the_bar_of_a_server_never_takes_more_than_three_lines(width: int) -> None:
    assert len(bar(width, SERVED)) == 3


def test_what_happens_is_printed_above_the_bar() -> None:
    console = terminal(100)
    display = LiveDisplay(LENGTH, console)
    display.start({"run": "digits"})
    display.train(TRAIN)
    display.validation(VAL)
    display.warning("[rank 1 node-b] is slow")
    display.note("saved [bold]100%[/bold]\x1b[2J")
    display.close()
    lines = [line.rstrip() for line in plain(written(console)).splitlines()]
    assert lines[0] == "run  digits"
    validation = lines.index("validation  step  46  epoch  2.00  loss 0.2500  accuracy 97.22%  in 0.3s")
    warning = lines.index("warning  [rank 1 node-b] is slow")
    note = lines.index("saved [bold]100%[/bold] [2J")
    assert validation < warning < note
    assert lines[-2].startswith("step 230/460")
    assert lines[-1].startswith("loss 2.1000")


def test_the_summary_is_a_table_followed_by_paths_in_one_piece() -> None:
    console = terminal(80)
    display = LiveDisplay(LENGTH, console)
    display.start({})
    display.finish(SUMMARY, resume="dist-train run a.yaml")
    display.close()
    lines = [line.rstrip() for line in plain(written(console)).splitlines()]
    assert "│ status     │ done                         │" in lines
    assert "│ validation │ loss 0.2500  accuracy 97.22% │" in lines
    assert lines[-2:] == [f"run directory  {SUMMARY['run_dir']}", "to continue    dist-train run a.yaml"]


def test_a_killed_run_leaves_the_cursor_visible() -> None:
    console = terminal()
    display = LiveDisplay(LENGTH, console)
    display.start({})
    display.train(TRAIN)
    assert written(console).rindex(SHOW_CURSOR) > written(console).rindex(HIDE_CURSOR)
    display.close()


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    colour = re.compile(r"\x1b\[[0-9;]*(3[0-9]|38;[0-9;]+)m")
    outputs = []
    for name in ("NO_COLOUR_AT_ALL", "NO_COLOR"):
        monkeypatch.setenv(name, "1")
        console = terminal()
        display = LiveDisplay(LENGTH, console)
        display.start({})
        display.train(TRAIN)
        display.warning("slow")
        display.finish(SUMMARY)
        outputs.append(written(console))
    assert colour.search(outputs[0])
    assert not colour.search(outputs[1])


def test_a_print_of_the_users_own_goes_above_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    console = terminal()
    display = LiveDisplay(LENGTH, console)
    display.start({})
    display.train(TRAIN)
    print("mine [1]")
    display.close()
    print("after")
    assert "mine [1]" in plain(written(console))
    assert capsys.readouterr().out == "after\n"
