"""Tests of what is the same in every mode: the clock, the best validation, the summary, stragglers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_train.config import load_config
from dist_train.rules.straggler import StepTimes, Straggler
from dist_train.watch.course import Course, Earlier, End, Standing, straggler_event
from dist_train.watch.logbook import NoLogbook
from dist_train.watch.records import ValLine

CONFIG = load_config(
    {
        "name": "course",
        "task": "digits",
        "train": {"epochs": 2, "batch_size": 8},
        "optimizer": {"name": "sgd", "lr": 0.1},
    }
)
AT = Standing(step=10, samples=160, epoch=1.6)


class Book(NoLogbook):
    def __init__(self) -> None:
        self.validations: list[ValLine] = []
        self.summary: Mapping[str, Any] = {}
        self.resume: str | None = None

    def validation(self, line: ValLine) -> None:
        self.validations.append(line)

    def finish(self, summary: Mapping[str, Any], resume: str | None = None) -> None:
        self.summary, self.resume = summary, resume


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def course(earlier: Earlier | None = None) -> tuple[Course, Book, Clock]:
    book, clock = Book(), Clock()
    return Course(book, CONFIG, 2, 1, earlier or Earlier(), clock), book, clock


def best_of(*losses: float, earlier: Earlier | None = None) -> dict[str, float]:
    run, book, _ = course(earlier)
    for number, loss in enumerate(losses, start=1):
        run.validated(Standing(number, 16 * number, 0.0), {"loss": loss, "accuracy": 1 - loss}, seconds=0.1)
    run.finish(AT, 0.0, End("done", Path("run"), None))
    return dict(book.summary["best"])


class TestClock:
    def test_counts_from_the_beginning(self) -> None:
        run, _, clock = course()
        clock.now += 3
        assert run.wall_s == 3.0

    def test_of_a_resumed_run_goes_on(self) -> None:
        run, _, clock = course(Earlier(wall_s=100.0))
        clock.now += 3
        assert run.wall_s == 103.0


class TestBest:
    def test_is_the_validation_of_lowest_loss(self) -> None:
        assert best_of(0.5, 0.25, 0.75) == {"step": 2, "loss": 0.25, "accuracy": 0.75}

    def test_is_never_one_whose_loss_is_not_a_number_if_there_are_others(self) -> None:
        assert best_of(math.nan, 0.5)["step"] == 2
        assert best_of(0.5, math.nan)["step"] == 1
        assert best_of(math.nan, 0.5, math.nan, 0.25)["step"] == 4

    def test_of_before_a_restart_still_counts(self) -> None:
        earlier = Earlier(best={"step": 0, "loss": 0.125, "accuracy": 0.99})
        assert best_of(0.5, earlier=earlier) == {"step": 0, "loss": 0.125, "accuracy": 0.99}


class TestValidation:
    def test_says_where_training_stands(self) -> None:
        run, book, clock = course()
        assert not run.has_validated
        clock.now += 2
        run.validated(AT, {"loss": 0.5, "accuracy": 0.75}, seconds=0.25)
        assert run.has_validated
        (line,) = book.validations
        assert (line.step, line.samples, line.epoch, line.wall_s) == (10, 160, 1.6, 2.0)
        assert (line.loss, line.metrics, line.seconds) == (0.5, {"accuracy": 0.75}, 0.25)


class TestEnd:
    def test_a_mode_adds_its_own_keys_to_the_summary(self) -> None:
        run, book, _ = course()
        end = End("interrupted", Path("run"), None, "dist-train run ...", {"requeued": 3})
        run.finish(AT, 12.34567, end)
        assert book.summary["requeued"] == 3
        assert (book.summary["status"], book.summary["restarts"]) == ("interrupted", 1)
        assert (book.summary["steps"], book.summary["samples"]) == (10, 160)
        assert book.summary["samples_per_s"] == 12.346
        assert book.resume == "dist-train run ..."


def test_a_straggler_is_named_with_the_time_it_loses() -> None:
    times = StepTimes(data=0.11, forward=0.02, backward=0.03, communication=0.0, update=0.01)
    event = straggler_event(Straggler(6, "data", 2.434), "workers 6-7 are", times, step=10)
    assert event == {
        "event": "straggler",
        "step": 10,
        "rank": 6,
        "phase": "data",
        "ratio": 2.43,
        "warning": "workers 6-7 are 2.4 times slower than the others, most of it in data (110.0 ms per step)",
    }
