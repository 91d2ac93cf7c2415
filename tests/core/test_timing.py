"""A step's time is divided into phases that add up; communication is what follows the last gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dist_train.core import timing
from dist_train.core.timing import StepClock

CPU = torch.device("cpu")


@pytest.fixture
def now(monkeypatch):
    """A clock set by hand."""
    hands = [100.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: hands[0])
    return hands


def test_each_phase_gets_its_own_time_and_together_they_are_the_step(now):
    model = nn.Linear(1, 1, bias=False)
    clock = StepClock(model, CPU)

    def batches():
        now[0] += 1
        yield "batch"

    start = now[0]
    for _ in range(2):
        assert clock.timed_next(batches()) == "batch"
        clock.begin()
        now[0] += 2
        clock.end("forward")
        now[0] += 4
        model(torch.ones(1, 1)).sum().backward()
        now[0] += 8
        clock.end("backward")
        now[0] += 16
        clock.end("update")
    times = clock.drain(2)
    assert (times.data, times.forward, times.backward) == (1, 2, 4)
    assert (times.communication, times.update) == (8, 16)
    assert times.own + times.communication == (now[0] - start) / 2


def test_waiting_for_other_replicas_is_taken_out_of_the_phase_that_it_interrupts(now):
    model = nn.Linear(1, 1, bias=False)
    clock = StepClock(model, CPU)
    clock.begin()
    now[0] += 2
    with clock.waiting():
        now[0] += 100
    now[0] += 3
    clock.end("forward")
    now[0] += 4
    model(torch.ones(1, 1)).sum().backward()
    clock.end("backward")
    assert clock.computing_s() == 9
    now[0] += 5
    for _ in range(2):
        with clock.waiting():
            now[0] += 1000
    now[0] += 6
    clock.end("update")
    times = clock.drain(1)
    assert (times.forward, times.backward, times.update, times.waiting) == (5, 4, 11, 2100)
    assert (times.own, times.total) == (20, 2120)


def test_waiting_between_two_steps_is_waiting_too(now):
    clock = StepClock(nn.Linear(1, 1), CPU)
    for _ in range(2):
        clock.begin()
        now[0] += 1
        clock.end("forward")
        now[0] += 50
        with clock.waiting():
            now[0] += 7
    times = clock.drain(2)
    assert (times.own, times.waiting) == (1, 7)


def test_what_was_drained_is_not_counted_again(now):
    clock = StepClock(nn.Linear(1, 1), CPU)
    clock.begin()
    now[0] += 1
    clock.end("forward")
    assert clock.drain(1).forward == 1
    assert clock.drain(0).own == 0


def test_time_between_steps_belongs_to_no_phase(now):
    clock = StepClock(nn.Linear(1, 1), CPU)
    for _ in range(2):
        clock.begin()
        now[0] += 1
        clock.end("forward")
        now[0] += 50
    assert clock.drain(1).own == 2


def test_accumulated_passes_add_up(now):
    clock = StepClock(nn.Linear(1, 1), CPU)
    for seconds in (1, 2):
        clock.begin()
        now[0] += seconds
        clock.end("forward")
    assert clock.drain(1).forward == 3


def test_a_model_without_trainable_parameters_can_be_timed():
    model = nn.Linear(1, 1).requires_grad_(False)
    assert StepClock(model, CPU).drain(1).own == 0
