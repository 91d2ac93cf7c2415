"""Calls without Ray: they answer as an actor does, and whoever is left alone is told so."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dist_train.errors import TrainingError
from dist_train.runtime.line import AsyncLine, Line, LineBroken, Listener, listen
from dist_train.runtime.remote import ActorFailed

NOWHERE = "\0dist-train-nobody-listens-here"


class Other:
    """The other side: what it was asked, and a gate that holds an answer back."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.gate = asyncio.Event()

    def double(self, number: int) -> int:
        self.seen.append(number)
        return 2 * number

    async def double_behind_the_gate(self, number: int) -> int:
        await self.gate.wait()
        return self.double(number)

    def refuse(self) -> None:
        raise TrainingError("no room: free some")

    def stumble(self) -> None:
        raise KeyError("nothing of that name")

    async def listening(self) -> Listener:
        names = ("double", "double_behind_the_gate", "refuse", "stumble")
        return await listen({name: getattr(self, name) for name in names})


@contextmanager
def listening(other: Other) -> Iterator[str]:
    """Have ``other`` listen in a thread of its own; give its address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        listener = asyncio.run_coroutine_threadsafe(other.listening(), loop).result()
        yield listener.address
        loop.call_soon_threadsafe(listener.close)
    finally:
        asyncio.run_coroutine_threadsafe(_end_tasks(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end_tasks() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class TestAThreadThatWaits:
    def test_gets_what_the_method_returned_call_after_call(self) -> None:
        other = Other()
        with listening(other) as address:
            own = Line(address)
            assert [own.ask("double", number) for number in range(3)] == [0, 2, 4]
            own.close()
        assert other.seen == [0, 1, 2]

    def test_gets_an_answer_larger_than_a_socket_holds(self) -> None:
        with listening(Other()) as address:
            own = Line(address)
            number = 1 << 8_000_000
            # Not compared in the assertion, which would write the number down if it failed.
            right = own.ask("double", number) == 2 * number
            assert right
            own.close()

    def test_meets_the_error_for_the_user_as_it_was_and_any_other_with_its_place(self) -> None:
        with listening(Other()) as address:
            own = Line(address)
            with pytest.raises(TrainingError, match=r"^no room: free some$"):
                own.ask("refuse")
            with pytest.raises(ActorFailed, match="nothing of that name") as failed:
                own.ask("stumble")
            assert "in stumble" in failed.value.trace
            own.close()

    def test_is_told_when_nobody_listens(self) -> None:
        with pytest.raises(LineBroken, match="nobody"):
            Line(NOWHERE)

    def test_is_told_when_the_other_side_ends_in_the_middle_of_an_answer(self) -> None:
        with _silent() as (address, accepted):
            own = Line(address)
            peer = accepted()
            peer.sendall(b"\0\0")
            peer.close()
            with pytest.raises(LineBroken, match="double was not answered"):
                own.ask("double", 1)
            own.close()


class TestAnEventLoopThatWaits:
    def test_is_answered_while_another_caller_still_waits(self) -> None:
        async def both() -> list[int]:
            other = Other()
            listener = await other.listening()
            first, second = [await AsyncLine.open(listener.address) for _ in range(2)]
            slow = asyncio.ensure_future(first.ask("double_behind_the_gate", 5))
            quick = await second.ask("double", 1)
            assert not slow.done()
            other.gate.set()
            answers = [quick, await slow]
            listener.close()
            first.close()
            second.close()
            await _end_tasks()
            return answers

        assert asyncio.run(both()) == [2, 10]

    def test_never_takes_the_answer_that_a_cancelled_call_left_for_its_own(self) -> None:
        async def cancel() -> None:
            other = Other()
            listener = await other.listening()
            own = await AsyncLine.open(listener.address)
            lost = asyncio.ensure_future(own.ask("double_behind_the_gate", 5))
            await asyncio.sleep(0)
            lost.cancel()
            await asyncio.gather(lost, return_exceptions=True)
            other.gate.set()
            with pytest.raises(LineBroken):
                await own.ask("double", 1)
            listener.close()
            await _end_tasks()

        asyncio.run(cancel())

    def test_is_told_when_nobody_listens(self) -> None:
        with pytest.raises(LineBroken, match="nobody"):
            asyncio.run(AsyncLine.open(NOWHERE))


class TestAnotherUser:
    def test_is_not_answered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with listening(Other()) as address:
            own = Line(address)
            someone = os.getuid() + 1
            monkeypatch.setattr("dist_train.runtime.line.os.getuid", lambda: someone)
            late = socket.socket(socket.AF_UNIX)
            late.settimeout(10)
            late.connect(address)
            assert late.recv(1) == b""
            late.close()
            with pytest.raises(LineBroken):
                Line(address)
            own.close()


@contextmanager
def _silent() -> Iterator[tuple[str, Any]]:
    """An address where connections are accepted, and nothing is understood."""
    address = "\0dist-train-test-" + os.urandom(8).hex()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        yield address, lambda: listener.accept()[0]
