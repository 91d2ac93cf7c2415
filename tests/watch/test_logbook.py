"""Tests of rank 0's book: what is written where, what a resumed run keeps, and a full disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dist_train.errors import TrainingError
from dist_train.watch.logbook import DISCARDED, EVENTS, METRICS, NoLogbook, RunLogbook, stamped
from dist_train.watch.records import JsonLines, StepTimes, TrainLine, ValLine
from dist_train.watch.scalars import NoScalars

TIMES = StepTimes(data=0.1, forward=0.1, backward=0.1, communication=0.1, update=0.1)


class Heard:
    """A display that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def start(self, facts: Mapping[str, str]) -> None:
        self.told.append(("start", facts))

    def train(self, line: TrainLine) -> None:
        self.told.append(("train", line.step))

    def validation(self, line: ValLine) -> None:
        self.told.append(("validation", line.step))

    def note(self, text: str) -> None:
        self.told.append(("note", text))

    def warning(self, text: str) -> None:
        self.told.append(("warning", text))

    def finish(self, summary: Mapping[str, Any], resume: str | None = None) -> None:
        self.told.append(("finish", resume))

    def close(self) -> None:
        self.told.append(("close", None))


def train_line(step: int) -> TrainLine:
    return TrainLine(
        step=step,
        samples=step * 64,
        epoch=step / 23,
        wall_s=step / 10,
        loss=2.0,
        lr=0.1,
        samples_per_s=640.0,
        samples_per_s_per_worker=320.0,
        data_wait=0.2,
        times=TIMES,
        memory_mb=300.0,
    )


def val_line(step: int) -> ValLine:
    return ValLine(
        step=step, samples=step * 64, epoch=1.0, wall_s=1.0, loss=0.5, metrics={"accuracy": 0.9}, seconds=0.2
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def opened(run_dir: Path, step: int = 0) -> tuple[RunLogbook, Heard]:
    heard = Heard()
    return RunLogbook(run_dir, heard, NoScalars(), step), heard


def test_training_and_validation_lines_carry_what_other_programs_rely_on(tmp_path: Path) -> None:
    book, _ = opened(tmp_path)
    book.train(train_line(10))
    book.validation(val_line(23))
    book.close()
    train, validation = lines(tmp_path / METRICS)
    assert train["kind"] == "train"
    assert {"step", "samples", "epoch", "loss", "lr", "samples_per_s", "replica"} <= train.keys()
    assert validation["kind"] == "val"
    assert {"step", "samples", "loss", "accuracy", "replica"} <= validation.keys()


def test_every_line_is_shown_too(tmp_path: Path) -> None:
    book, heard = opened(tmp_path)
    book.start({"run": "digits"})
    book.train(train_line(10))
    book.validation(val_line(23))
    book.finish({"status": "done"}, "resume it")
    book.close()
    assert heard.told == [
        ("start", {"run": "digits"}),
        ("train", 10),
        ("validation", 23),
        ("finish", "resume it"),
        ("close", None),
    ]


def test_events_are_written_with_their_time_and_shown_where_they_speak_to_a_person(tmp_path: Path) -> None:
    book, heard = opened(tmp_path)
    book.event({"event": "checkpoint", "step": 3})
    book.event({"event": "rescaled", "note": "global batch 64 -> 32"})
    book.event({"event": "straggler", "warning": "worker 1 is slow"})
    book.close()
    written = lines(tmp_path / EVENTS)
    assert [line["event"] for line in written] == ["checkpoint", "rescaled", "straggler"]
    assert all(line["time"] > 0 for line in written)
    assert heard.told[:-1] == [("note", "global batch 64 -> 32"), ("warning", "worker 1 is slow")]


def test_the_summary_is_a_file_of_its_own(tmp_path: Path) -> None:
    book, _ = opened(tmp_path)
    book.finish({"status": "done", "steps": 3})
    book.close()
    assert json.loads((tmp_path / "summary.json").read_text()) == {"status": "done", "steps": 3}


def test_a_resumed_run_sets_later_lines_aside_and_loses_none(tmp_path: Path) -> None:
    book, _ = opened(tmp_path)
    for step in (10, 20, 30):
        book.train(train_line(step))
    book.event({"event": "start"})
    book.close()
    book, _ = opened(tmp_path, step=20)
    book.train(train_line(30))
    book.close()
    assert [line["step"] for line in lines(tmp_path / METRICS)] == [10, 20, 30]
    assert [line["step"] for line in lines(tmp_path / DISCARDED)] == [30]
    assert len(lines(tmp_path / EVENTS)) == 1


def test_a_full_disk_is_told_once_and_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book, heard = opened(tmp_path)

    def full(self: JsonLines, record: Mapping[str, Any]) -> None:
        raise TrainingError(f"{self.path}: cannot be written (No space left on device)")

    monkeypatch.setattr(JsonLines, "write", full)
    book.train(train_line(10))
    book.train(train_line(20))
    book.event({"event": "checkpoint"})
    book.close()
    warnings = [text for kind, text in heard.told if kind == "warning"]
    assert len(warnings) == 1
    assert "No space left on device" in warnings[0]
    assert ("train", 20) in heard.told


def test_other_ranks_write_nothing() -> None:
    book = NoLogbook()
    book.start({})
    book.train(train_line(1))
    book.validation(val_line(1))
    book.event({"event": "x", "warning": "unheard"})
    book.finish({})
    book.close()


def test_a_stamp_leaves_the_event_as_it_was() -> None:
    event = {"event": "start"}
    assert stamped(event).keys() == {"time", "event"}
    assert event == {"event": "start"}


def test_what_comes_after_the_end_is_not_written(tmp_path: Path) -> None:
    book, heard = opened(tmp_path)
    book.event({"event": "checkpoint"})
    book.close()
    book.event({"event": "failure", "warning": "too late"})
    book.train(train_line(10))
    book.validation(val_line(10))
    assert [line["event"] for line in lines(tmp_path / EVENTS)] == ["checkpoint"]
    assert heard.told[-1] == ("close", None)
