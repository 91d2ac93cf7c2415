"""A worker that is to be slow sleeps beside each gradient, and its own time shows it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dist_train.config.schema import Faults
from dist_train.core import timing
from dist_train.core.injected_delays import InjectedDelays, injected_delays
from dist_train.core.timing import StepClock
from dist_train.rules.delays import delay


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


class TestWhoIsSlowed:
    @pytest.mark.parametrize(
        ("faults", "slowed"),
        [
            (Faults(), []),
            (Faults(slow={1: 3.0}), [1]),
            (Faults(slow={1: 1.0}), []),
            (Faults(step_s=0.1), [0, 1, 2]),
            (Faults(lognormal_sigma=0.5), [0, 1, 2]),
        ],
    )
    def test_nobody_else_has_anything_to_do_beside_a_gradient(self, faults, slowed):
        assert [worker for worker in range(3) if injected_delays(faults, worker) is not None] == slowed


class TestSleep:
    def test_makes_the_gradient_take_its_multiple_and_counts_as_backward_pass(self, now):
        clock, slept = StepClock(nn.Linear(1, 1), torch.device("cpu")), []

        def sleep(seconds):
            slept.append(seconds)
            now[0] += seconds

        delays = InjectedDelays(Faults(slow={4: 5.0}), 4, sleep=sleep)
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
        expected = [delay(faults, 2, number, own_s=0.0) for number in (7, 8)]
        slept: list[float] = []
        delays = InjectedDelays(faults, 2, first=7, sleep=slept.append)
        delays(clock)
        delays(clock)
        assert slept == expected
