"""Tests of the TensorBoard scalars, read back by TensorBoard itself."""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dist_train.watch.records import StepTimes, TrainLine, ValLine, WorkerFigures
from dist_train.watch.scalars import NoScalars, Scalars

TIMES = StepTimes(data=0.001, forward=0.002, backward=0.003, communication=0.004, update=0.005)


def train_line(step: int, loss: float) -> TrainLine:
    return TrainLine(
        step=step,
        samples=64 * step,
        epoch=step / 8,
        wall_s=2.0 * step,
        loss=loss,
        lr=0.5,
        samples_per_s=1000.0,
        samples_per_s_per_worker=500.0,
        data_wait=0.25,
        times=TIMES,
        memory_mb=300.0,
        grad_norm=2.0,
        extras={"staleness": 3.0},
    )


def val_line(step: int) -> ValLine:
    return ValLine(
        step=step, samples=64 * step, epoch=1.0, wall_s=9.0, loss=0.5, metrics={"accuracy": 0.75}, seconds=0.5
    )


def refuse(message: str) -> None:
    raise AssertionError(message)


def events(directory: Path) -> EventAccumulator:
    return EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()


def series(read: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read.Scalars(tag)]


def test_tensorboard_reads_every_figure_by_global_step(tmp_path: Path) -> None:
    scalars = Scalars(tmp_path / "tb", refuse, configuration="name: digits")
    scalars.restarts(0, 2)
    scalars.train(train_line(10, 2.5))
    scalars.train(train_line(20, 1.5))
    scalars.validation(val_line(20))
    scalars.close()
    read = events(tmp_path / "tb")
    assert series(read, "train/loss") == [(10, 2.5), (20, 1.5)]
    expected = {
        "train/lr": 0.5,
        "train/grad_norm": 2.0,
        "train/epoch": 1.25,
        "train/samples": 640,
        "perf/samples_per_s": 1000.0,
        "perf/data_wait": 0.25,
        "perf/step_time_ms": 15.0,
        "perf/communication_ms": 4.0,
        "memory/peak_mb": 300.0,
        "mode/staleness": 3.0,
    }
    for tag, value in expected.items():
        assert series(read, tag)[0] == (10, pytest.approx(value))
    assert series(read, "val/loss") == [(20, 0.5)]
    assert series(read, "val/accuracy") == [(20, 0.75)]
    assert series(read, "fault/restarts") == [(0, 2.0)]


def test_the_figures_of_a_server_have_a_place_of_their_own(tmp_path: Path) -> None:
    worker = WorkerFigures(name="0", samples_per_s=9.0, staleness=3.0, dropped=0, waiting=0.1)
    scalars = Scalars(tmp_path, refuse)
    scalars.train(replace(train_line(10, 2.5), workers=(worker,)))
    scalars.close()
    read = events(tmp_path)
    assert series(read, "server/staleness") == [(10, 3.0)]
    assert "mode/staleness" not in read.Tags()["scalars"]


def test_the_configuration_is_there_once_as_text(tmp_path: Path) -> None:
    scalars = Scalars(tmp_path, refuse, configuration="name: digits")
    scalars.train(train_line(10, 2.5))
    scalars.train(train_line(20, 2.5))
    scalars.close()
    read = events(tmp_path)
    assert read.SummaryMetadata("config").plugin_data.plugin_name == "text"
    assert [event.tensor_proto.string_val[0] for event in read.Tensors("config")] == [
        b"```yaml\nname: digits\n```"
    ]


def test_a_resumed_run_hides_the_steps_that_it_trains_again(tmp_path: Path) -> None:
    first = Scalars(tmp_path, refuse, configuration="name: digits")
    for step in (10, 20, 30):
        first.train(train_line(step, 1.0))
    first.close()
    second = Scalars(tmp_path, refuse, purge_step=16, configuration="name: digits")
    for step in (20, 30):
        second.train(train_line(step, 2.0))
    second.close()
    read = events(tmp_path)
    assert series(read, "train/loss") == [(10, 1.0), (20, 2.0), (30, 2.0)]
    assert len(read.Tensors("config")) == 1


def test_figures_are_readable_while_the_run_goes_on(tmp_path: Path) -> None:
    scalars = Scalars(tmp_path, refuse)
    scalars.train(train_line(10, 2.5))
    assert series(events(tmp_path), "train/loss") == [(10, 2.5)]
    scalars.close()


def test_nothing_is_opened_before_the_first_scalar(tmp_path: Path) -> None:
    scalars = Scalars(tmp_path / "tb", refuse, configuration="name: digits")
    assert not (tmp_path / "tb").exists()
    scalars.close()


def test_a_missing_tensorboard_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.setitem(sys.modules, module, None)
    warnings: list[str] = []
    scalars = Scalars(tmp_path, warnings.append)
    scalars.train(train_line(10, 2.5))
    scalars.validation(val_line(10))
    scalars.close()
    assert len(warnings) == 1
    assert "no TensorBoard scalars from here on" in warnings[0]


def test_a_place_that_cannot_be_written_costs_one_warning(tmp_path: Path) -> None:
    (tmp_path / "tb").write_text("a file, not a directory")
    warnings: list[str] = []
    scalars = Scalars(tmp_path / "tb", warnings.append)
    scalars.train(train_line(10, 2.5))
    scalars.train(train_line(20, 2.5))
    assert len(warnings) == 1


def test_a_full_disk_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def full(path: Path, mode: str = "r", buffering: int = -1) -> Any:
        return opened(Path("/dev/full"), "wb", buffering) if mode == "xb" else opened(path, mode, buffering)

    monkeypatch.setattr(Path, "open", full)
    warnings: list[str] = []
    scalars = Scalars(tmp_path, warnings.append)
    scalars.train(train_line(10, 2.5))
    scalars.train(train_line(20, 2.5))
    scalars.close()
    assert len(warnings) == 1
    assert "No space left" in warnings[0]


def test_scalars_that_are_switched_off_have_the_same_verbs() -> None:
    for verb, method in vars(Scalars).items():
        if not verb.startswith("_"):
            assert inspect.signature(getattr(NoScalars, verb)) == inspect.signature(method)
