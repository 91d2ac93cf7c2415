"""Tests of the relay of predictions, driven in one thread: what each worker gets, and whom it waits for."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest

from dist_train.runtime import relay
from dist_train.runtime.line import Line
from dist_train.runtime.relay import HaltByLine, Relay, RelayThread, Seat, Waits

LONG = Waits(meeting_s=1000.0, patience_s=1000.0, halt_s=1000.0)


class World:
    """A relay that a test drives by hand; ``groups`` have so many workers."""

    def __init__(self, replicas: int = 2, workers: int = 1, patience_s: float = 1000.0) -> None:
        self.relay = Relay(replicas, workers, replace(LONG, patience_s=patience_s))
        self.replicas = replicas
        self.workers = workers
        self.lives = [0] * replicas

    async def swap(
        self,
        replica: int,
        updates: int,
        said: bytes,
        rank: int = 0,
        batch: int = 0,
        workers: int | None = None,
    ) -> dict[int, bytes]:
        teachers = tuple(each for each in range(self.replicas) if each != replica)
        seat = Seat(replica, rank, str(self.lives[replica]), teachers)
        return await self.relay.swap(seat, (updates, batch), workers or self.workers, said)

    async def waiting(self, *call: Any, **named: Any) -> asyncio.Future[dict[int, bytes]]:
        """Begin to swap, and see to it that it waits."""
        begun = asyncio.ensure_future(self.swap(*call, **named))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not begun.done()
        return begun


def run(work: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await work

    asyncio.run(limited())


def test_each_gets_what_the_others_say_of_the_same_batch() -> None:
    async def work() -> None:
        found = World(3)
        said = await asyncio.gather(*(found.swap(each, 5, b"%d" % each) for each in range(3)))
        assert said == [{1: b"1", 2: b"2"}, {0: b"0", 2: b"2"}, {0: b"0", 1: b"1"}]

    run(work())


def test_workers_meet_those_of_their_own_rank() -> None:
    async def work() -> None:
        found = World(workers=2)
        calls = [(replica, rank) for replica in range(2) for rank in range(2)]
        said = await asyncio.gather(*(found.swap(i, 5, b"%d of %d" % (r, i), rank=r) for i, r in calls))
        assert said == [{1: b"0 of 1"}, {1: b"1 of 1"}, {0: b"0 of 0"}, {0: b"1 of 0"}]

    run(work())


def test_one_that_is_gone_is_done_without() -> None:
    async def work() -> None:
        found = World()
        waiting = await found.waiting(0, 5, b"zero")
        found.relay.gone(1)
        assert await waiting == {}
        assert await found.swap(0, 6, b"zero") == {}

    run(work())


def test_one_that_is_behind_gets_what_was_said_then_and_is_waited_for() -> None:
    async def work() -> None:
        found = World()
        found.relay.gone(1)
        for updates in (5, 6):
            assert await found.swap(0, updates, b"zero %d" % updates) == {}
        assert await found.swap(1, 5, b"one") == {0: b"zero 5"}
        waiting = await found.waiting(0, 7, b"zero 7")
        assert await found.swap(1, 6, b"one") == {0: b"zero 6"}
        assert not waiting.done()
        assert await found.swap(1, 7, b"one 7") == {0: b"zero 7"}
        assert await waiting == {1: b"one 7"}

    run(work())


def test_the_silent_are_waited_for_no_longer_than_patience_lasts() -> None:
    async def work() -> None:
        found = World(patience_s=0.05)
        waiting = asyncio.ensure_future(found.swap(0, 5, b"zero"))
        assert await found.swap(1, 5, b"one") == {0: b"zero"}
        assert await waiting == {1: b"one"}
        assert await found.swap(0, 6, b"zero") == {}

    run(work())


def test_old_predictions_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "KEPT", 3)

    async def work() -> None:
        found = World()
        found.relay.gone(1)
        for updates in range(6):
            await found.swap(0, updates, b"zero")
        assert await found.swap(1, 2, b"one") == {}
        assert await found.swap(1, 3, b"one") == {0: b"zero"}

    run(work())


class TestOneGroup:
    """Its workers learn from the same teachers, whatever happens between their calls."""

    def test_waits_for_what_all_workers_of_a_teacher_say(self) -> None:
        async def work() -> None:
            found = World(workers=2)
            first = await found.waiting(0, 5, b"0 of 0")
            other = await found.waiting(1, 5, b"0 of 1")
            # Its other worker never comes: what has come of it is of no use.
            found.relay.gone(1)
            assert (await first, await found.swap(0, 5, b"1 of 0", rank=1)) == ({}, {})
            other.cancel()

        run(work())

    def test_follows_the_first_of_them_that_goes_on_alone(self) -> None:
        async def work() -> None:
            found = World(workers=2)
            found.relay.gone(1)
            assert await found.swap(0, 5, b"0 of 0") == {}
            # By now the teacher is back, at the same batch.
            others = [asyncio.ensure_future(found.swap(1, 5, b"%d of 1" % rank, rank)) for rank in range(2)]
            for _ in range(5):
                await asyncio.sleep(0)
            assert await found.swap(0, 5, b"1 of 0", rank=1) == {}
            assert await asyncio.gather(*others) == [{0: b"0 of 0"}, {0: b"1 of 0"}]

        run(work())

    def test_is_not_bound_by_what_was_settled_before_it_was_started_again(self) -> None:
        async def work() -> None:
            found = World(workers=2)
            found.relay.gone(1)
            assert await found.swap(0, 5, b"0 of 0") == {}
            others = [await found.waiting(1, 5, b"%d of 1" % rank, rank) for rank in range(2)]
            found.lives[0] += 1
            assert await found.swap(0, 5, b"0 of 0") == {1: b"0 of 1"}
            assert await found.swap(0, 5, b"1 of 0", rank=1) == {1: b"1 of 1"}
            assert await asyncio.gather(*others) == [{0: b"0 of 0"}, {0: b"1 of 0"}]

        run(work())

    def test_learns_of_a_batch_that_not_all_workers_have(self) -> None:
        async def work() -> None:
            found = World(workers=2)
            calls = [(replica, rank) for replica in range(2) for rank in range(2)]
            await asyncio.gather(*(found.swap(i, 5, b"all", rank=r) for i, r in calls))
            said = await asyncio.gather(
                *(found.swap(i, 5, b"0 of %d" % i, batch=1, workers=1) for i in range(2))
            )
            assert said == [{1: b"0 of 1"}, {0: b"0 of 0"}]

        run(work())

    def test_does_without_a_teacher_one_worker_of_which_has_nothing_to_teach(self) -> None:
        async def work() -> None:
            found = World(workers=2)
            said = await asyncio.gather(
                found.swap(0, 5, b"0 of 0"),
                found.swap(0, 5, b"1 of 0", rank=1),
                found.swap(1, 5, b"0 of 1"),
                found.swap(1, 5, b"", rank=1),
            )
            assert said == [{}, {}, {0: b"0 of 0"}, {0: b"1 of 0"}]

        run(work())


def test_processes_reach_it_by_line() -> None:
    thread = RelayThread(2, 1, LONG)
    thread.gone(1)
    line = Line(thread.address)
    assert line.ask("swap", Seat(0, 0, "", (1,)), (5, 0), 1, b"zero") == {}
    line.close()
    thread.close()


def test_replicas_agree_by_line_on_where_to_stop() -> None:
    thread = RelayThread(2, 1, LONG)
    one, other = (HaltByLine(thread.address, replica, (0, 1)) for replica in range(2))
    assert other.asked() is None
    assert one.pledge(5, "SIGTERM") is None
    assert other.asked() == "SIGTERM"
    assert (other.pledge(6, "SIGTERM"), one.pledge(5, "SIGTERM")) == (6, 6)
    one.close(6)
    other.close(6)
    thread.close()


def test_one_that_has_ended_is_not_waited_for_and_its_last_update_counts() -> None:
    thread = RelayThread(2, 1, LONG)
    one, other = (HaltByLine(thread.address, replica, (0, 1)) for replica in range(2))
    other.close(6)
    thread.gone(1)
    assert one.pledge(5, "SIGTERM") == 6
    one.close(6)
    thread.close()


def test_without_the_relay_a_replica_stops_alone() -> None:
    thread = RelayThread(2, 1, LONG)
    found = HaltByLine(thread.address, 0, (0, 1))
    assert found.pledge(5, "SIGTERM") is None
    thread.close()
    assert (found.asked(), found.pledge(5, "SIGTERM")) == (None, 5)
    found.close(5)


def test_closing_takes_no_longer_than_its_limit() -> None:
    thread = RelayThread(2, 1, LONG)
    held, gate = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        gate.wait()

    thread._loop.call_soon_threadsafe(hold)
    held.wait()
    assert not thread.close(limit_s=0.0)
    gate.set()
    assert thread.close()


@pytest.mark.filterwarnings("error")
def test_a_call_that_came_in_at_the_last_moment_leaves_no_socket_open() -> None:
    for _ in range(50):
        thread = RelayThread(2, 1, Waits(1000.0, 1000.0, 1000.0))
        line = Line(thread.address)
        assert thread.close()
        line.close()
    gc.collect()
