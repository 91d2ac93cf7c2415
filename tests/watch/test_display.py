"""Tests of the choice of a display, and of the silent and the plain one."""

from __future__ import annotations

import inspect
import io
import os
from dataclasses import replace
from typing import TextIO

import pytest

from dist_train.watch.display import Display, LastingStream, PlainDisplay, SilentDisplay, open_display
from dist_train.watch.figures import Length
from dist_train.watch.live import LiveDisplay
from dist_train.watch.records import StepTimes, TrainLine, ValLine, WorkerFigures
from dist_train.watch.tally import CAUSES

LENGTH = Length(steps=460, samples=29440, epochs=20)
TIMES = StepTimes(data=0.1, forward=0.1, backward=0.1, communication=0.1, update=0.1)
TRAIN = TrainLine(
    step=10,
    samples=640,
    epoch=0.4348,
    wall_s=2.0,
    loss=2.1,
    lr=0.1,
    samples_per_s=320.0,
    samples_per_s_per_worker=160.0,
    data_wait=0.021,
    times=TIMES,
    memory_mb=300.0,
)
VAL = ValLine(
    step=46, samples=2944, epoch=2.0, wall_s=2.0, loss=0.25, metrics={"accuracy": 0.9722}, seconds=0.3
)
SUMMARY = {
    "status": "interrupted",
    "mode": "sync",
    "workers": 1,
    "replicas": 1,
    "steps": 100,
    "samples": 6400,
    "wall_s": 20.0,
    "samples_per_s": 320.0,
    "restarts": 1,
    "val": {"loss": 0.25},
    "run_dir": "runs/digits",
    "model": "runs/digits/model.safetensors",
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show_everything(display: Display) -> None:
    display.start({"run": "digits", "global batch": "64 = 2 workers x 32"})
    display.train(TRAIN)
    display.validation(VAL)
    display.warning("[rank 1] is slow")
    display.note("checkpoint saved")
    display.finish(SUMMARY, resume="dist-train run digits.yaml --resume auto")
    display.close()
    display.close()


def test_plain_lines_read_as_printed_here() -> None:
    stream = io.StringIO()
    show_everything(PlainDisplay(LENGTH, stream))
    assert stream.getvalue().splitlines() == [
        "run           digits",
        "global batch  64 = 2 workers x 32",
        "",
        "step  10/460  epoch  0.43/20  loss 2.1000  lr 0.1  samples/s 320 (160 per worker)  data wait 2%"
        "  ETA  1m 30s",
        "validation  step  46  epoch  2.00  loss 0.2500  accuracy 97.22%  in 0.3s",
        "warning: [rank 1] is slow",
        "checkpoint saved",
        "",
        "status         interrupted",
        "mode           sync, 1 worker",
        "steps          100",
        "samples        6,400",
        "wall time      20s",
        "samples/s      320",
        "restarts       1",
        "validation     loss 0.2500",
        "run directory  runs/digits",
        "model          runs/digits/model.safetensors",
        "to continue    dist-train run digits.yaml --resume auto",
    ]


def test_plain_training_lines_come_at_most_once_a_second_but_the_last_always() -> None:
    stream, times = io.StringIO(), iter([0.0, 0.4, 1.1, 1.2])
    display = PlainDisplay(LENGTH, stream, clock=lambda: next(times))
    for step in (10, 20, 30, LENGTH.steps):
        display.train(replace(TRAIN, step=step))
    shown = [line.split("/")[0].split()[-1] for line in stream.getvalue().splitlines()]
    assert shown == ["10", "30", str(LENGTH.steps)]


def served(step: int) -> TrainLine:
    counts = dict.fromkeys(("staleness_p99", "computed", "applied", "dropped", "refused", "requeued"), 0)
    waiting = {f"waiting_{cause}": 0.0 for cause in CAUSES}
    worker = WorkerFigures(name="0", samples_per_s=160.0, staleness=1.5, dropped=0, waiting=0.0)
    return replace(TRAIN, step=step, extras={"staleness": 1.5, **counts, **waiting}, workers=(worker,))


def test_plain_lines_of_a_server_have_staleness_and_more_rarely_each_workers_own() -> None:
    stream, times = io.StringIO(), iter([0.0, 2.0, 9.0, 10.5, 11.0])
    display = PlainDisplay(LENGTH, stream, clock=lambda: next(times))
    for step in (10, 20, 30, 40, LENGTH.steps):
        display.train(served(step))
    lines = stream.getvalue().splitlines()
    assert "data wait 2%  staleness 1.5 (p99 0)  waiting 0%  ETA" in lines[0]
    assert lines[1] == "workers  0: 160 samples/s, staleness 1.5"
    kinds = ["workers" if line.startswith("workers") else line.split("/")[0].split()[-1] for line in lines]
    assert kinds == ["10", "workers", "20", "30", "40", "workers", "460", "workers"]


def test_the_summary_of_a_server_has_its_rows() -> None:
    stream = io.StringIO()
    staleness = {"mean": 1.5, "p50": 1, "p99": 4, "max": 9}
    PlainDisplay(LENGTH, stream).finish({**SUMMARY, "staleness": staleness})
    assert "staleness      mean 1.50, p99 4, max 9" in stream.getvalue().splitlines()


def test_plain_lines_hold_no_control_characters() -> None:
    stream = io.StringIO()
    display = PlainDisplay(LENGTH, stream)
    display.note("one\x1b[2Jtwo\nthree")
    display.start({"run": "a\tb"})
    assert stream.getvalue() == "one [2Jtwo three\nrun  a b\n\n"


def test_a_worker_that_is_not_rank_0_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    display = open_display(LENGTH, silent=True, stream=terminal)
    show_everything(display)
    assert terminal.getvalue() == ""
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("stream", "term", "kind"),
    [
        (Terminal(), "xterm-256color", LiveDisplay),
        (Terminal(), "dumb", PlainDisplay),
        (io.StringIO(), "xterm-256color", PlainDisplay),
    ],
)
def test_the_display_is_live_only_where_the_cursor_can_move(
    stream: TextIO, term: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert type(open_display(LENGTH, stream=stream)) is kind


def test_standard_output_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    open_display(LENGTH).note("here")
    assert capsys.readouterr().out == "here\n"


def test_all_displays_have_the_same_verbs() -> None:
    verbs = {"start", "train", "validation", "note", "warning", "finish", "close"}
    for kind in (Display, SilentDisplay, PlainDisplay, LiveDisplay):
        assert {name for name in vars(kind) if not name.startswith("_")} == verbs
        for verb in sorted(verbs):
            assert inspect.signature(getattr(kind, verb)) == inspect.signature(getattr(Display, verb))


@pytest.mark.parametrize("text", ["short", "more than any buffer holds" * 10_000])
def test_training_outlives_the_reader_of_its_output(text: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:
        display = PlainDisplay(LENGTH, LastingStream(stream))
        display.note(text)
        display.note("and then")
        display.close()


def test_a_terminal_without_a_letter_gets_a_question_mark() -> None:
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, encoding="ascii")
    PlainDisplay(LENGTH, LastingStream(stream)).note("täglich")
    assert content.getvalue() == b"t?glich\n"
    stream.close()
