"""Tests of a run's attempts: what was lost, how long the way back was, and where a moment lies."""

from __future__ import annotations

import numpy as np
import pytest

from dist_train.report.history import Event, History, attempts, track

# Ten steps a second from clock 1000 on; killed at clock 1008 in step 80; again from step 50 at clock 1011.
EVENTS: list[Event] = [
    {"event": "start", "time": 1000.0, "step": 0},
    {"event": "failure", "time": 1008.0, "rank": 1, "step": 80},
    {"event": "restart", "time": 1008.1, "from_step": 50},
    {"event": "start", "time": 1011.0, "step": 50},
]
STEPS = np.arange(10.0, 101.0, 10.0)


def history(*events: Event) -> History:
    return History(attempts(events), track(STEPS, 32 * STEPS, STEPS / 10))


def test_without_failures_clock_and_wall_time_go_together() -> None:
    found = history(EVENTS[0])
    assert found.wall_of(1004.0) == pytest.approx(4.0)
    assert found.clock_of(4.0) == pytest.approx(4.0)
    assert found.lost() == []
    assert found.recoveries() == []


def test_steps_that_are_made_again_were_lost() -> None:
    assert history(*EVENTS).lost() == [(1008.0, pytest.approx(3.0))]


def test_recovery_is_from_the_failure_to_the_next_start() -> None:
    assert history(*EVENTS).recoveries() == [(1008.0, 1011.0)]


def test_a_pause_until_somebody_starts_it_again_is_no_recovery() -> None:
    assert history(EVENTS[0], EVENTS[1], EVENTS[3]).recoveries() == []


def test_one_that_fails_again_before_it_starts_is_on_its_way_back_from_the_first() -> None:
    again = [{**EVENTS[1], "time": 1009.5}, {**EVENTS[2], "time": 1009.6}]
    found = history(*EVENTS[:3], *again, EVENTS[3])
    assert found.lost() == [(1008.0, pytest.approx(3.0))]
    assert found.recoveries() == [(1008.0, 1011.0)]


def test_a_replica_fails_and_starts_again_as_a_run_does() -> None:
    failure = {"event": "replica_failure", "time": 1008.0, "replica": 1, "status": -9}
    restart = {"event": "replica_restart", "time": 1008.1, "replica": 1, "from_step": 50}
    found = history(EVENTS[0], failure, restart, EVENTS[3])
    assert found.lost() == history(*EVENTS).lost()
    assert found.recoveries() == history(*EVENTS).recoveries()


def test_the_failure_of_one_member_ends_no_attempt() -> None:
    lost_member = {"event": "failure", "time": 1003.0, "rank": 1, "member": 1, "incarnation": 0}
    (attempt,) = attempts([EVENTS[0], lost_member])
    assert attempt.failed is None


def test_a_moment_that_was_lost_lies_where_the_run_was_taken_up_again() -> None:
    found = history(*EVENTS)
    assert found.wall_of(1007.0) == pytest.approx(5.0)
    assert found.wall_of(1012.0) == pytest.approx(6.0)
    assert found.wall_of(999.0) == 0.0


def test_the_clock_of_a_wall_time_is_that_of_the_attempt_that_was_kept() -> None:
    found = history(*EVENTS)
    assert found.clock_of(4.0) == pytest.approx(4.0)
    assert found.clock_of(6.0) == pytest.approx(12.0)


def test_wall_time_goes_on_through_what_a_failure_costs() -> None:
    """Three seconds of work were lost, and three more passed until it started again."""
    found = history(*EVENTS)
    assert found.elapsed(np.array([2.0, 5.0, 6.0, 10.0])).tolist() == pytest.approx([2.0, 5.0, 12.0, 16.0])
    assert found.elapsed_at(1008.0) == pytest.approx(8.0)
    assert found.elapsed_at(1012.0) == pytest.approx(12.0)


def test_a_pause_until_somebody_starts_it_again_is_no_wall_time() -> None:
    found = history(EVENTS[0], EVENTS[1], EVENTS[3])
    assert found.elapsed(np.array([5.0, 6.0])).tolist() == pytest.approx([5.0, 9.0])
    assert found.elapsed_at(1012.0) == pytest.approx(9.0)


def test_without_events_wall_times_stay_as_they_are() -> None:
    found = history()
    assert found.elapsed(STEPS) is STEPS
    assert found.elapsed_at(1000.0) == 0.0


def test_a_track_leads_from_steps_to_samples_and_wall_time() -> None:
    step, samples, wall_s = history().track.at_step(25)
    assert (step, samples, wall_s) == (25.0, 800.0, pytest.approx(2.5))
    assert history().track.at_wall(2.5)[0] == pytest.approx(25.0)


def test_a_track_passes_over_what_is_no_number() -> None:
    found = track(np.array([10.0, np.nan, 20.0]), np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, np.nan]))
    assert found.step.tolist() == [0.0, 10.0]


def test_a_run_without_records_has_a_history_of_nothing() -> None:
    nothing = History(attempts([]), track(np.empty(0), np.empty(0), np.empty(0)))
    assert nothing.wall_of(5.0) == 0.0
    assert nothing.track.at_step(3) == (0.0, 0.0, 0.0)
