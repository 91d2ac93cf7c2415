from __future__ import annotations

import asyncio
import os
import signal

import pytest

from dist_train.runtime.interruption import Interruptible, sigterm_as_ctrl_c, stop_signals_to, the_first


async def seven() -> int:
    await asyncio.sleep(0)
    return 7


async def failing() -> int:
    raise ValueError("no")


def in_a_notebook(interruptible: Interruptible[int], work: object) -> int:
    async def cell() -> int:
        # As a notebook's kernel has it, unlike asyncio.run.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return interruptible.run(work)  # type: ignore[arg-type]
        finally:
            signal.signal(signal.SIGINT, before)

    return asyncio.run(cell())


def test_a_coroutine_is_run_from_a_script_and_from_a_notebook() -> None:
    assert Interruptible[int]().run(seven()) == 7
    assert in_a_notebook(Interruptible[int](), seven()) == 7


def test_what_it_raises_is_raised() -> None:
    with pytest.raises(ValueError, match="no"):
        Interruptible[int]().run(failing())
    with pytest.raises(ValueError, match="no"):
        in_a_notebook(Interruptible[int](), failing())


def test_ctrl_c_in_a_notebook_reaches_what_runs() -> None:
    interruptible = Interruptible[int]()

    async def until_interrupted() -> int:
        stopped = asyncio.Event()
        interruptible.interrupted_by(stopped.set)
        # The notebook's kernel interrupts its main thread.
        os.kill(os.getpid(), signal.SIGINT)
        await stopped.wait()
        return 75

    assert in_a_notebook(interruptible, until_interrupted()) == 75


def test_sigterm_interrupts_like_ctrl_c_and_only_inside() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), sigterm_as_ctrl_c():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_requests_to_stop_reach_the_loop_and_then_whoever_heard_them_before() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    heard: list[signal.Signals] = []

    async def attempt() -> None:
        with stop_signals_to(heard.append):
            for number in before:
                os.kill(os.getpid(), number)
            while len(heard) < len(before):
                await asyncio.sleep(0)

    asyncio.run(attempt())
    assert heard == list(before)
    assert {number: signal.getsignal(number) for number in before} == before


def test_sigterm_is_still_heard_after_an_attempt_has_ended() -> None:
    async def attempt() -> None:
        with stop_signals_to(lambda number: None):
            pass

    with sigterm_as_ctrl_c():
        asyncio.run(attempt())
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_hang_up_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    async def attempt() -> None:
        with stop_signals_to(lambda number: None):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN

    try:
        asyncio.run(attempt())
    finally:
        signal.signal(signal.SIGHUP, before)


def test_only_the_first_request_is_passed_on() -> None:
    heard: list[signal.Signals] = []
    stop = the_first(heard.append)
    stop(signal.SIGUSR1)
    stop(signal.SIGTERM)
    assert heard == [signal.SIGUSR1]
