"""Tests of what is made of measurements: lines, the best validation, stragglers, the summary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dist_train.config import load_config
from dist_train.core.learner import Measurement
from dist_train.core.state import Counted
from dist_train.plan import make_plan
from dist_train.rules.sampling import Position
from dist_train.rules.straggler import StepTimes
from dist_train.watch.course import Earlier
from dist_train.watch.logbook import NoLogbook
from dist_train.watch.records import TrainLine, ValLine
from dist_train.watch.reporter import Reporter

CONFIG = load_config(
    {
        "name": "reported",
        "task": "digits",
        "train": {"epochs": 2, "batch_size": 8},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "logging": {"straggler_ratio": 1.5},
    },
    (),
)
EVEN = StepTimes(data=0.01, forward=0.02, backward=0.03, communication=0.04, update=0.01)
SLOW = StepTimes(data=0.11, forward=0.02, backward=0.03, communication=0.00, update=0.01)


class Book(NoLogbook):
    def __init__(self) -> None:
        self.trained: list[TrainLine] = []
        self.validated: list[ValLine] = []
        self.events: list[Mapping[str, Any]] = []
        self.summary: Mapping[str, Any] = {}
        self.resume: str | None = None

    def train(self, line: TrainLine) -> None:
        self.trained.append(line)

    def validation(self, line: ValLine) -> None:
        self.validated.append(line)

    def event(self, event: Mapping[str, Any]) -> None:
        self.events.append(event)

    def finish(self, summary: Mapping[str, Any], resume: str | None = None) -> None:
        self.summary, self.resume = summary, resume


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def reporting(clock: Clock | None = None, restarts: int = 0) -> tuple[Reporter, Book, Counted]:
    book, counted = Book(), Counted(10, 160, Position(1, 60))
    plan = make_plan(CONFIG, workers=2, train_size=100)
    reporter = Reporter(book, CONFIG, plan, counted, restarts, Earlier(), clock or Clock())
    return reporter, book, counted


def measurement(*times: StepTimes, samples: int = 160, seconds: float = 2.0) -> Measurement:
    return Measurement(0.5, samples, seconds, list(times or (EVEN, EVEN)), 300.0, 1.25)


def test_a_training_line_says_where_training_stands_and_how_fast_it_goes() -> None:
    clock = Clock()
    reporter, book, _ = reporting(clock)
    clock.now += 5
    reporter.measured(measurement(), rate=0.2)
    (line,) = book.trained
    assert (line.step, line.samples, line.epoch, line.lr, line.loss) == (10, 160, 1.6, 0.2, 0.5)
    assert (line.samples_per_s, line.samples_per_s_per_worker, line.wall_s) == (80.0, 40.0, 5.0)
    assert line.data_wait == pytest.approx(0.01 / 0.11)
    assert (line.memory_mb, line.grad_norm) == (300.0, 1.25)


def test_times_are_the_mean_over_the_workers_and_the_slowest_is_named() -> None:
    reporter, book, _ = reporting()
    reporter.measured(measurement(EVEN, SLOW), rate=0.1)
    assert book.trained[0].times.data == pytest.approx(0.06)
    assert book.trained[0].times.communication == pytest.approx(0.02)
    assert book.trained[0].slowest_rank == 1


def test_a_worker_alone_is_not_called_the_slowest() -> None:
    reporter, book, _ = reporting()
    reporter.measured(measurement(EVEN), rate=0.1)
    assert book.trained[0].slowest_rank is None


def test_a_worker_that_stays_slow_is_named_with_the_phase_that_costs_it() -> None:
    reporter, book, _ = reporting()
    for _ in range(6):
        reporter.measured(measurement(EVEN, SLOW), rate=0.1)
    (event,) = book.events
    assert (event["event"], event["rank"], event["phase"], event["step"]) == ("straggler", 1, "data", 10)
    assert event["ratio"] == pytest.approx(0.17 / 0.07, abs=0.01)
    assert "worker 1 is 2.4 times slower than the others, most of it in data (110.0 ms" in event["warning"]


def test_even_workers_raise_no_alarm() -> None:
    reporter, book, _ = reporting()
    for _ in range(6):
        reporter.measured(measurement(EVEN, EVEN), rate=0.1)
    assert book.events == []


def test_a_validation_line_has_the_measures_beside_the_loss() -> None:
    reporter, book, _ = reporting()
    assert not reporter.has_validated
    reporter.validated({"loss": 0.5, "accuracy": 0.75}, seconds=0.25)
    assert reporter.has_validated
    (line,) = book.validated
    assert (line.step, line.samples, line.loss, line.seconds) == (10, 160, 0.5, 0.25)
    assert line.metrics == {"accuracy": 0.75}


def test_the_summary_holds_what_other_programs_rely_on() -> None:
    clock = Clock()
    reporter, book, _ = reporting(clock, restarts=1)
    reporter.measured(measurement(samples=100, seconds=2.0), rate=0.1)
    reporter.measured(measurement(samples=60, seconds=2.0), rate=0.1)
    reporter.validated({"loss": 0.5, "accuracy": 0.75}, seconds=0.25)
    clock.now += 10
    reporter.finish("interrupted", Path("runs/x"), None, "dist-train run ...")
    assert book.summary == {
        "status": "interrupted",
        "mode": "sync",
        "workers": 2,
        "replicas": 1,
        "steps": 10,
        "samples": 160,
        "wall_s": 10.0,
        "samples_per_s": 40.0,
        "restarts": 1,
        "val": {"loss": 0.5, "accuracy": 0.75},
        "best": {"step": 10, "loss": 0.5, "accuracy": 0.75},
        "run_dir": "runs/x",
    }
    assert book.resume == "dist-train run ..."


def test_a_run_that_made_no_step_has_a_summary_too() -> None:
    reporter, book, _ = reporting()
    reporter.finish("done", Path("run"), Path("run/model.safetensors"))
    assert (book.summary["samples_per_s"], book.summary["val"]) == (0.0, {})
    assert book.summary["model"] == "run/model.safetensors"
