from dataclasses import replace
from itertools import pairwise

import pytest

from dist_train.rules.liveness import PHASES, Beat, Healthy, Hung, Limits, Pause, Watch, judge

LIMITS = Limits(frozen_after_s=5.0, hung_after_s=30.0, start_timeout_s=600.0)
NOW = 1000.0


def beat(rank=0, step=412, phase="backward", since=0.1, silent=0.2, longest=0.5):
    """A worker that has been in its phase for ``since`` seconds and silent for ``silent``."""
    return Beat(rank, step, phase, NOW - since, None if silent is None else NOW - silent, longest)


def ranks(*beats, **options):
    verdict = judge(beats, NOW, LIMITS, **options)
    return verdict.ranks if isinstance(verdict, Hung) else ()


def test_workers_that_move_and_tick_are_healthy():
    assert judge([beat(0), beat(1, since=29.9, silent=4.9)], NOW, LIMITS) == Healthy()
    assert judge([], NOW, LIMITS) == Healthy()


def test_a_stopped_pulse_is_frozen_although_its_phase_is_young():
    verdict = judge([beat(0), beat(1, since=5.2, silent=5.1)], NOW, LIMITS)
    assert verdict == Hung(
        (1,), "frozen", "worker 1 is frozen in step 412, phase backward: no sign of life for 5.1 s"
    )


def test_the_frozen_worker_is_named_not_those_furthest_behind():
    assert ranks(beat(0, step=411, since=100.0), beat(1, silent=6.0)) == (1,)


def test_a_long_phase_is_hung_although_its_pulse_ticks():
    verdict = judge([beat(3, phase="data", since=31.0)], NOW, LIMITS)
    assert verdict == Hung((3,), "hung", "worker 3 is hung in step 412, phase data: no progress for 31.0 s")


def test_a_phase_may_take_twenty_times_its_longest():
    assert ranks(beat(longest=2.0, since=39.0)) == ()
    assert ranks(beat(longest=2.0, since=41.0)) == (0,)


def test_a_phase_that_was_never_finished_may_take_as_long_as_the_start():
    assert ranks(beat(phase="validating", longest=0.0, since=599.0)) == ()
    assert ranks(beat(phase="validating", longest=0.0, since=601.0)) == (0,)


@pytest.mark.parametrize("silent", [None, 599.0])
def test_a_starting_worker_has_the_start_timeout_for_pulse_and_phase(silent):
    starting = beat(phase="starting", step=0, longest=0.0, since=599.0, silent=silent)
    assert ranks(starting) == ()
    assert ranks(replace(starting, phase_since=NOW - 601.0)) == (0,)


def test_a_worker_without_a_first_pulse_is_not_frozen():
    assert ranks(beat(phase="starting", since=10.0, silent=None)) == ()


def test_a_closed_pulse_is_not_frozen():
    assert ranks(beat(phase="finishing", silent=float("-inf"))) == ()


@pytest.mark.parametrize(("early", "late"), list(pairwise(PHASES[1:])))
def test_the_worker_in_the_earlier_phase_is_named_not_those_that_wait_for_it(early, late):
    assert ranks(beat(0, phase=late, since=40.0), beat(1, phase=early, since=40.0)) == (1,)


def test_the_worker_at_the_lower_step_is_named_whatever_its_phase():
    assert ranks(beat(0, step=412, phase="data", since=40.0), beat(1, step=411, since=40.0)) == (1,)


def test_a_worker_that_still_starts_is_behind_everyone():
    waiting, starting = beat(0, step=5, since=650.0), beat(1, step=9, phase="starting", since=650.0)
    assert ranks(waiting, starting) == (1,)


def test_all_are_named_when_all_are_at_the_same_place():
    verdict = judge([beat(1, since=40.0), beat(0, since=35.0)], NOW, LIMITS)
    assert isinstance(verdict, Hung)
    assert verdict.ranks == (0, 1)
    assert verdict.why == "workers 0, 1 are hung in step 412, phase backward: no progress for 35.0 s"


def test_waiting_long_for_a_worker_within_its_own_limit_is_healthy():
    slow_loader = beat(1, phase="data", since=90.0, longest=5.0)
    assert ranks(beat(0, since=90.0), slow_loader) == ()


def test_a_late_arrival_at_the_same_place_starts_the_wait_anew():
    assert ranks(beat(0, since=31.0), beat(1, since=0.1)) == ()


def test_a_pause_of_the_observer_is_not_held_against_the_workers():
    stale = beat(since=3600.0, silent=3600.0)
    assert ranks(stale, pauses=[Pause(NOW - 0.1, 3599.0)]) == ()
    assert ranks(stale, pauses=[Pause(NOW - 0.1, 3580.0)]) == (0,)


def test_a_pause_before_the_phase_began_counts_for_nothing():
    assert ranks(beat(since=31.0), pauses=[Pause(NOW - 32.0, 3600.0)]) == (0,)


def test_a_watch_forgives_what_a_suspended_machine_makes_look_old():
    watch = Watch(LIMITS, every_s=0.25)
    before = Beat(0, 7, "data", phase_since=90.0, pulse_at=99.9, longest=0.5)
    assert watch.look([before], 100.0) == Healthy()
    assert watch.look([before], 3700.0) == Healthy()
    ticking = replace(before, pulse_at=3700.1)
    assert watch.look([ticking], 3700.25) == Healthy()
    # Ten seconds in the phase before the suspension and more than twenty after it are too many.
    looks = [watch.look([replace(ticking, pulse_at=now)], now) for now in (3700.5 + n / 4 for n in range(90))]
    assert looks[70] == Healthy()
    assert isinstance(looks[-1], Hung)


def test_a_watch_finds_a_worker_that_stays_silent_after_the_suspension():
    watch = Watch(LIMITS, every_s=0.25)
    silent = Beat(0, 7, "data", phase_since=99.0, pulse_at=99.9, longest=0.5)
    verdicts = [watch.look([silent], 100.0)]
    verdicts += [watch.look([silent], 3700.0 + n / 4) for n in range(25)]
    assert verdicts[1] == Healthy()
    assert isinstance(verdicts[-1], Hung)
