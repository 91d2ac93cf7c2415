"""Tests of a book with a thread of its own: nobody waits for the disk, and nothing that was told is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from dist_train.errors import TrainingError
from dist_train.watch.records import TrainLine, ValLine
from dist_train.watch.scribe import Scribe

PATIENCE_S = 20


class SlowBook:
    """A book on a disk that stands still until ``disk`` is set; ``started`` when it has to write."""

    def __init__(self, error: Exception | None = None) -> None:
        self.disk = threading.Event()
        self.started = threading.Event()
        self.written: list[Any] = []
        self._error = error

    def _write(self, *what: Any) -> None:
        self.started.set()
        assert self.disk.wait(PATIENCE_S)
        if self._error is not None:
            raise self._error
        self.written.append(what)

    def start(self, facts: Mapping[str, str]) -> None:
        self._write("start", facts)

    def train(self, line: TrainLine) -> None:
        self._write("train", line)

    def validation(self, line: ValLine) -> None:
        self._write("validation", line)

    def event(self, event: Mapping[str, Any]) -> None:
        self._write("event", event["event"])

    def finish(self, summary: Mapping[str, Any], resume: str | None = None) -> None:
        self._write("finish", resume)

    def close(self) -> None:
        self._write("close")


@pytest.fixture
def aside() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def named(*names: str) -> list[tuple[str, str]]:
    return [("event", name) for name in names]


def test_nobody_waits_while_the_disk_stands_still_and_all_is_written_in_order() -> None:
    book = SlowBook()
    scribe = Scribe(book)
    line = cast(TrainLine, object())
    scribe.event({"event": "a"})
    scribe.train(line)
    scribe.event({"event": "b"})
    assert book.written == []
    book.disk.set()
    scribe.settle()
    assert book.written == [("event", "a"), ("train", line), ("event", "b")]
    scribe.close()


def test_to_settle_is_to_wait_for_what_was_told_before(aside: ThreadPoolExecutor) -> None:
    book = SlowBook()
    scribe = Scribe(book)
    scribe.event({"event": "a"})
    settled = aside.submit(scribe.settle)
    assert book.started.wait(PATIENCE_S)
    assert not settled.done()
    book.disk.set()
    settled.result(PATIENCE_S)
    assert book.written == named("a")
    scribe.close()


def test_an_event_has_the_time_at_which_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1.0]
    monkeypatch.setattr("dist_train.watch.logbook.time.time", lambda: now[0])
    book = SlowBook()
    told: list[Mapping[str, Any]] = []
    monkeypatch.setattr(book, "event", told.append)
    scribe = Scribe(book)
    scribe.event({"event": "a"})
    now[0] = 5.0
    book.disk.set()
    scribe.close()
    assert told == [{"event": "a", "time": 1.0}]


def test_only_so_much_may_wait_to_be_written(aside: ThreadPoolExecutor) -> None:
    book = SlowBook()
    scribe = Scribe(book, most_waiting=2)
    scribe.event({"event": "being written"})
    assert book.started.wait(PATIENCE_S)
    for name in "ab":
        scribe.event({"event": name})
    more = aside.submit(scribe.event, {"event": "c"})
    assert not more.done()
    book.disk.set()
    more.result(PATIENCE_S)
    scribe.settle()
    assert book.written == named("being written", "a", "b", "c")
    scribe.close()


def test_what_cannot_be_written_is_raised_by_the_next_call_and_nothing_is_written_after_it() -> None:
    book = SlowBook(TrainingError("no room"))
    book.disk.set()
    scribe = Scribe(book)
    scribe.event({"event": "a"})
    scribe.wait()
    with pytest.raises(TrainingError, match="no room"):
        scribe.event({"event": "b"})
    for told in (scribe.settle, lambda: scribe.finish({})):
        with pytest.raises(TrainingError, match="no room"):
            told()
    assert book.written == []
    book._error = None
    scribe.close()


def test_the_summary_comes_after_all_that_was_told() -> None:
    book = SlowBook()
    scribe = Scribe(book)
    scribe.event({"event": "a"})
    book.disk.set()
    scribe.finish({}, "a command")
    assert book.written == [*named("a"), ("finish", "a command")]
    scribe.close()


def test_what_is_told_after_the_end_is_not_written_and_nobody_waits_for_it() -> None:
    book = SlowBook()
    scribe = Scribe(book)
    scribe.event({"event": "a"})
    book.disk.set()
    scribe.close()
    scribe.event({"event": "late"})
    scribe.settle()
    scribe.close()
    assert book.written == [*named("a"), ("close",)]
