import math
import mmap
import os
import struct
import subprocess
import sys
import threading
import time

import pytest

from dist_train.rules.liveness import PHASES, Limits
from dist_train.runtime.pulse import PulseReader, PulseWriter

HUNG_SOON = Limits(frozen_after_s=5.0, hung_after_s=0.01, start_timeout_s=0.01)


@pytest.fixture
def pulses():
    with PulseReader(workers=2) as reader:
        yield reader


@pytest.fixture
def writer(pulses):
    writer = PulseWriter(pulses.path, 1)
    yield writer
    writer.close()


def test_workers_without_a_pulse_yet_are_starting(pulses):
    for rank, beat in enumerate(pulses.beats()):
        assert (beat.rank, beat.step, beat.phase, beat.pulse_at) == (rank, 0, "starting", None)
        assert time.monotonic() - beat.phase_since < 60


def test_a_writer_shows_its_place_in_its_own_slot_only(pulses, writer):
    before = time.monotonic()
    writer.phase("forward", 412)
    other, own = pulses.beats()
    assert (own.step, own.phase) == (412, "forward")
    assert before <= own.phase_since <= time.monotonic()
    assert own.pulse_at is not None
    assert (other.step, other.phase, other.pulse_at) == (0, "starting", None)


def test_every_phase_can_be_shown(pulses, writer):
    shown = []
    for phase in PHASES:
        writer.phase(phase, 2**40)
        shown.append((pulses.beats()[1].phase, pulses.beats()[1].step))
    assert shown == [(phase, 2**40) for phase in PHASES]


def test_the_longest_time_of_each_phase_is_kept(pulses, writer, monkeypatch):
    now = iter([100.0, 103.0, 110.0, 111.0])
    writer.phase("data", 1)
    with monkeypatch.context() as patch:
        patch.setattr("dist_train.runtime.pulse.time.monotonic", lambda: next(now, 111.0))
        writer._since = 99.0
        for phase, step in (("forward", 1), ("data", 2), ("forward", 2), ("data", 3)):
            writer.phase(phase, step)
    assert pulses.beats()[1].longest == 7.0
    writer.phase("forward", 3)
    assert pulses.beats()[1].longest == 3.0


def test_the_pulse_ticks_by_itself(pulses, writer):
    first = pulses.beats()[1].pulse_at
    deadline = time.monotonic() + 10
    while pulses.beats()[1].pulse_at == first:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert pulses.beats()[1].pulse_at > first


def test_a_closed_pulse_never_looks_frozen(pulses, writer):
    writer.close()
    assert pulses.beats()[1].pulse_at == math.inf
    writer._tick()
    assert pulses.beats()[1].pulse_at == math.inf


def test_actions_run_at_every_tick_and_a_blocked_one_delays_no_other(writer):
    release, twice = threading.Event(), threading.Semaphore(0)
    writer.every_tick(release.wait)
    writer.every_tick(twice.release)
    assert twice.acquire(timeout=10)
    assert twice.acquire(timeout=10)
    release.set()


def test_an_action_that_raises_is_reported_and_dropped(pulses, writer, capsys):
    calls, others = [], threading.Semaphore(0)

    def fail():
        calls.append(None)
        raise RuntimeError("the store is gone")

    writer.every_tick(fail)
    writer.every_tick(others.release)
    for _ in range(3):
        assert others.acquire(timeout=10)
    assert len(calls) == 1
    assert "RuntimeError: the store is gone" in capsys.readouterr().err


def test_without_a_launcher_a_worker_notices_that_it_hangs():
    writer, told = PulseWriter(None, slot=3), []
    noticed = threading.Event()
    writer.phase("data", 5)
    writer.watch_self(HUNG_SOON, rank=11, on_hung=lambda why: (told.append(why), noticed.set()))
    assert noticed.wait(10)
    writer.close()
    assert told[0].startswith("worker 11 is hung in step 5, phase data: no progress for")


def test_showing_a_place_costs_microseconds(writer):
    def cost():
        start = time.perf_counter()
        for step in range(100):
            writer.phase("forward", step)
        return (time.perf_counter() - start) / 100

    assert min(cost() for _ in range(50)) < 10e-6


# Shows its place as fast as it can, until it is told to end.
RESTLESS = """
import select, sys
from dist_train.runtime.pulse import PulseWriter

writer = PulseWriter(sys.argv[1])
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    for step in range(1, 1000):
        writer.phase("forward", step)
"""


@pytest.mark.processes
def test_a_worker_never_seems_to_have_been_starting_ever_since_the_machine_was(pulses):
    seen = mmap.mmap(pulses.fileno(), 0)
    command = [sys.executable, "-c", RESTLESS, f"/proc/{os.getpid()}/fd/{pulses.fileno()}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as restless:
        assert restless.stdout.readline() == b"ready\n"
        began = time.monotonic() - 60
        sinces: set[float] = set()
        # Until it has beaten often, however little it gets of the processors; the test's time limit ends it.
        while len(sinces) <= 100:
            # Each look is a single one, not those that stand still alone.
            sinces |= {struct.unpack_from("@d", seen)[0] for _ in range(200_000)}
        restless.communicate(timeout=30)
    assert min(sinces) > began
    seen.close()
