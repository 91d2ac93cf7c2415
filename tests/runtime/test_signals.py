"""Tests of requests to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from dist_train.errors import FAILED
from dist_train.runtime.signals import STOPPING, StopSignals


@pytest.fixture
def signals() -> Iterator[StopSignals]:
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield StopSignals()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPPING)
def test_each_signal_is_passed_on_by_name(signals: StopSignals, number: signal.Signals) -> None:
    heard: list[str] = []
    signals.connect(heard.append)
    os.kill(os.getpid(), number)
    assert heard == [number.name]


def test_a_signal_that_came_early_is_passed_on_when_somebody_listens(signals: StopSignals) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    heard: list[str] = []
    signals.connect(heard.append)
    assert heard == ["SIGTERM"]


def test_nothing_is_passed_on_unasked(signals: StopSignals) -> None:
    heard: list[str] = []
    signals.connect(heard.append)
    assert heard == []


def test_repeated_requests_other_than_ctrl_c_do_no_harm(signals: StopSignals) -> None:
    heard: list[str] = []
    signals.connect(heard.append)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), number)
    assert heard == ["SIGTERM", "SIGTERM", "SIGUSR1"]


def test_a_second_ctrl_c_ends_the_process_at_once() -> None:
    script = (
        "import os, signal\nfrom dist_train.runtime.signals import StopSignals\nStopSignals()\n"
        "for _ in range(2):\n    os.kill(os.getpid(), signal.SIGINT)\nprint('still here')"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == FAILED
    assert ended.stdout == ""
    assert ended.stderr == "second SIGINT: stopping at once, without saving\n"
