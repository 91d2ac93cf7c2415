"""A worker that is to be slow sleeps beside each gradient, and one whose time has come is killed."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from torch import nn

from dist_train.config.schema import Faults
from dist_train.core import timing
from dist_train.core.injected_faults import InjectedFaults, injected_faults, kill_oneself
from dist_train.core.timing import StepClock
from dist_train.rules.injection import Who, delay, lifetime


@pytest.fixture
def now(monkeypatch):
    """A clock set by hand."""
    hands = [100.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: hands[0])
    return hands


def gradient(clock, now, forward_s, backward_s):
    """Make the marks of one forward and backward pass without an exchange."""
    clock.begin()
    now[0] += forward_s
    clock.end("forward")
    now[0] += backward_s
    clock.end("backward")


class TestWhomItBefalls:
    @pytest.mark.parametrize(
        ("faults", "befallen"),
        [
            (Faults(), []),
            (Faults(slow={1: 3.0}), [1]),
            (Faults(slow={1: 1.0}), []),
            (Faults(step_s=0.1), [0, 1, 2]),
            (Faults(lognormal_sigma=0.5), [0, 1, 2]),
            (Faults(mean_lifetime=100), [0, 1, 2]),
        ],
    )
    def test_nobody_else_has_anything_to_do_beside_a_gradient(self, faults, befallen):
        assert [worker for worker in range(3) if injected_faults(faults, Who(worker)) is not None] == befallen


class TestSleep:
    def test_makes_the_gradient_take_its_multiple_and_counts_as_backward_pass(self, now):
        clock, slept = StepClock(nn.Linear(1, 1), torch.device("cpu")), []

        def sleep(seconds):
            slept.append(seconds)
            now[0] += seconds

        delays = InjectedFaults(Faults(slow={4: 5.0}), Who(4), sleep=sleep)
        for _ in range(2):
            # Two passes are accumulated; the update before them is not part of the gradient.
            gradient(clock, now, forward_s=1, backward_s=2)
            now[0] += 100
            gradient(clock, now, forward_s=3, backward_s=4)
            delays(clock)
            now[0] += 1000
            clock.end("update")
        assert slept == [4 * 10.0, 4 * 10.0]
        times = clock.drain(2)
        assert (times.forward, times.backward, times.update) == (4, 6 + 40, 1000)

    def test_is_that_of_the_gradients_number(self):
        faults, clock = Faults(lognormal_sigma=0.5, seed=3), StepClock(nn.Linear(1, 1), torch.device("cpu"))
        expected = [delay(faults, Who(2), number, own_s=0.0) for number in (7, 8)]
        slept: list[float] = []
        delays = InjectedFaults(faults, Who(2), first=7, sleep=slept.append)
        delays(clock)
        delays(clock)
        assert slept == expected


class TestDeath:
    def test_comes_with_the_last_gradient_of_a_lifetime(self):
        faults, clock = Faults(mean_lifetime=20, seed=3), StepClock(nn.Linear(1, 1), torch.device("cpu"))
        who, died = Who(2, life=1), []
        befalls = InjectedFaults(faults, who, first=100, die=lambda: died.append(True))
        lives = lifetime(faults, who)
        for _ in range(lives - 1):
            befalls(clock)
        assert not died
        befalls(clock)
        assert died == [True]

    def test_is_a_kill(self, monkeypatch):
        killed = []
        monkeypatch.setattr("os.kill", lambda pid, number: killed.append((pid, number)))
        kill_oneself()
        assert killed == [(os.getpid(), signal.SIGKILL)]
