"""Tests of the relay of predictions, driven in one thread: what each worker gets, and whom it waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest

from dist_train.runtime import relay
from dist_train.runtime.line import Line
from dist_train.runtime.relay import HaltByLine, Relay, RelayThread, Waits

LONG = Waits(meeting_s=1000.0, patience_s=1000.0, halt_s=1000.0)


def made(replicas: int = 2, patience_s: float = 1000.0) -> Relay:
    return Relay(replicas, replace(LONG, patience_s=patience_s))


def run(work: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await work

    asyncio.run(limited())


def test_each_gets_what_the_others_say_of_the_same_batch() -> None:
    async def work() -> None:
        found = made(3)
        said = await asyncio.gather(
            found.swap(0, 0, (1, 2), (5, 0), b"zero"),
            found.swap(0, 1, (0, 2), (5, 0), b"one"),
            found.swap(0, 2, (0, 1), (5, 0), b"two"),
        )
        assert said == [[b"one", b"two"], [b"zero", b"two"], [b"zero", b"one"]]

    run(work())


def test_workers_meet_those_of_their_own_rank() -> None:
    async def work() -> None:
        found = made()
        said = await asyncio.gather(
            found.swap(0, 0, (1,), (5, 0), b"0 of 0"),
            found.swap(1, 0, (1,), (5, 0), b"1 of 0"),
            found.swap(0, 1, (0,), (5, 0), b"0 of 1"),
            found.swap(1, 1, (0,), (5, 0), b"1 of 1"),
        )
        assert said == [[b"0 of 1"], [b"1 of 1"], [b"0 of 0"], [b"1 of 0"]]

    run(work())


def test_one_that_is_gone_is_done_without() -> None:
    async def work() -> None:
        found = made()
        waiting = asyncio.ensure_future(found.swap(0, 0, (1,), (5, 0), b"zero"))
        await asyncio.sleep(0)
        assert not waiting.done()
        found.gone(1)
        assert await waiting == []
        assert await found.swap(0, 0, (1,), (6, 0), b"zero") == []
        # Of a rank that it has never been heard of, too.
        assert await found.swap(3, 0, (1,), (6, 0), b"zero") == []

    run(work())


def test_one_that_is_behind_gets_what_was_said_then_and_is_waited_for() -> None:
    async def work() -> None:
        found = made()
        found.gone(1)
        for updates in (5, 6):
            assert await found.swap(0, 0, (1,), (updates, 0), b"zero %d" % updates) == []
        assert await found.swap(0, 1, (0,), (5, 0), b"one") == [b"zero 5"]
        waiting = asyncio.ensure_future(found.swap(0, 0, (1,), (7, 0), b"zero 7"))
        assert await found.swap(0, 1, (0,), (6, 0), b"one") == [b"zero 6"]
        assert not waiting.done()
        assert await found.swap(0, 1, (0,), (7, 0), b"one 7") == [b"zero 7"]
        assert await waiting == [b"one 7"]

    run(work())


def test_the_silent_are_waited_for_no_longer_than_patience_lasts() -> None:
    async def work() -> None:
        found = made(patience_s=0.05)
        waiting = asyncio.ensure_future(found.swap(0, 0, (1,), (5, 0), b"zero"))
        assert await found.swap(0, 1, (0,), (5, 0), b"one") == [b"zero"]
        assert await waiting == [b"one"]
        assert await found.swap(0, 0, (1,), (6, 0), b"zero") == []

    run(work())


def test_old_predictions_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "KEPT", 3)

    async def work() -> None:
        found = made()
        found.gone(1)
        for updates in range(6):
            await found.swap(0, 0, (1,), (updates, 0), b"zero")
        assert await found.swap(0, 1, (0,), (2, 0), b"one") == []
        assert await found.swap(0, 1, (0,), (3, 0), b"one") == [b"zero"]

    run(work())


def test_processes_reach_it_by_line() -> None:
    thread = RelayThread(2, LONG)
    thread.gone(1)
    line = Line(thread.address)
    assert line.ask("swap", 0, 0, (1,), (5, 0), b"zero") == []
    line.close()
    thread.close()


def test_replicas_agree_by_line_on_where_to_stop() -> None:
    thread = RelayThread(2, LONG)
    one, other = (HaltByLine(thread.address, replica, (0, 1)) for replica in range(2))
    assert other.asked() is None
    assert one.pledge(5, "SIGTERM") is None
    assert other.asked() == "SIGTERM"
    assert (other.pledge(6, "SIGTERM"), one.pledge(5, "SIGTERM")) == (6, 6)
    one.close(6)
    other.close(6)
    thread.close()


def test_one_that_has_ended_is_not_waited_for_and_its_last_update_counts() -> None:
    thread = RelayThread(2, LONG)
    one, other = (HaltByLine(thread.address, replica, (0, 1)) for replica in range(2))
    other.close(6)
    thread.gone(1)
    assert one.pledge(5, "SIGTERM") == 6
    one.close(6)
    thread.close()


def test_without_the_relay_a_replica_stops_alone() -> None:
    thread = RelayThread(2, LONG)
    found = HaltByLine(thread.address, 0, (0, 1))
    assert found.pledge(5, "SIGTERM") is None
    thread.close()
    assert (found.asked(), found.pledge(5, "SIGTERM")) == (None, 5)
    found.close(5)


def test_closing_takes_no_longer_than_its_limit() -> None:
    thread = RelayThread(2, LONG)
    held, gate = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        gate.wait()

    thread._loop.call_soon_threadsafe(hold)
    held.wait()
    assert not thread.close(limit_s=0.0)
    gate.set()
    assert thread.close()
