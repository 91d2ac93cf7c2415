"""Running an event loop from wherever the caller is, so that Ctrl-C still reaches what runs in it."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType
from typing import Any, Generic, TypeVar

from dist_train.runtime.signals import STOPPING

T = TypeVar("T")


class Interruptible(Generic[T]):
    """Runs one coroutine; in a thread of its own where the caller's has a loop already, as in a notebook."""

    def __init__(self) -> None:
        self._interrupt: Callable[[], None] | None = None

    def interrupted_by(self, interrupt: Callable[[], None]) -> None:
        """From inside: say what Ctrl-C is to do when it meets the caller's thread."""
        loop = asyncio.get_running_loop()

        def tell() -> None:
            loop.call_soon_threadsafe(interrupt)

        self._interrupt = tell

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what ``work`` returns, or raise what it raises."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(work)
        result: Future[T] = Future()

        def in_thread() -> None:
            try:
                result.set_result(asyncio.run(work))
            except BaseException as error:
                result.set_exception(error)

        thread: threading.Thread | None = None
        while True:
            try:
                if thread is None:
                    thread = threading.Thread(target=in_thread, name="attempt")
                    thread.start()
                return result.result()
            except KeyboardInterrupt:
                if self._interrupt is not None:
                    self._interrupt()


def the_first(stop: Callable[[signal.Signals], None]) -> Callable[[signal.Signals], None]:
    """Pass on the first request to stop, and none after it."""
    asked = False

    def pass_on(number: signal.Signals) -> None:
        nonlocal asked
        if not asked:
            asked = True
            stop(number)

    return pass_on


@contextmanager
def stop_signals_to(stop: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Inside a coroutine: have every request to stop call ``stop`` in its loop, until the block is left.

    The loop's own handlers would leave SIGTERM deadly when the loop closes; these give back what was there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    def tell(number: int, _: FrameType | None) -> None:
        loop.call_soon_threadsafe(stop, signal.Signals(number))

    # nohup has a hang-up ignored, and it should stay so.
    heard = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, tell) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Have SIGTERM raise KeyboardInterrupt, where no loop runs that could hear it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
