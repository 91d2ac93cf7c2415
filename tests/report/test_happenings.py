"""Tests of what events come to: faults by kind, absences, staleness, and what is not read."""

from __future__ import annotations

import json

import pytest

from dist_train.report.happenings import MOST_SHOWN, Happenings, Kind, fault_of, whole
from dist_train.report.history import Event


def told(*events: Event) -> Happenings:
    found = Happenings()
    for event in events:
        found.add(event)
    return found


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        ({"event": "failure", "rank": 1, "error": "killed"}, "failure"),
        ({"event": "hung", "ranks": [1], "reason": "worker 1 hangs"}, "failure"),
        ({"event": "gave_up", "reason": "the same step failed twice"}, "failure"),
        ({"event": "restart", "from_step": 3, "reason": "killed"}, "restart"),
        ({"event": "start", "step": 40, "workers": 2}, "restart"),
        ({"event": "rolled_back", "warning": "shard 0 was lost"}, "shard"),
        ({"event": "refused", "member": 1, "warning": "NaN"}, "refused"),
        ({"event": "straggler", "rank": 1, "warning": "worker 1 is slow"}, "straggler"),
        ({"event": "signal", "signal": "SIGTERM"}, "stop"),
        ({"event": "checkpoint_failed", "warning": "the disk is full"}, "warning"),
        ({"event": "something_new", "warning": "look"}, "warning"),
    ],
)
def test_faults_are_of_a_kind(event: Event, kind: Kind) -> None:
    fault = fault_of(event)
    assert fault is not None
    assert fault.kind == kind
    assert fault.text


@pytest.mark.parametrize(
    "event", [{"event": "start", "step": 0}, {"event": "checkpoint"}, {"event": "teacher", "replica": 1}, {}]
)
def test_what_went_well_is_no_fault(event: Event) -> None:
    assert fault_of(event) is None


def test_a_failure_says_who_where_and_why() -> None:
    event = {"event": "failure", "time": 5.0, "rank": 1, "step": 42, "phase": "forward", "error": "boom"}
    fault = fault_of(event)
    assert fault is not None
    assert (fault.clock, fault.step, fault.worker) == (5.0, 42.0, "1")
    assert fault.text == "worker 1 failed in phase forward: boom"


def test_a_start_after_a_restart_is_told_once() -> None:
    found = told(
        {"event": "start", "step": 0}, {"event": "restart", "from_step": 5}, {"event": "start", "step": 5}
    )
    assert found.counts == {"restart": 1}


def test_the_start_of_a_replica_that_the_run_starts_again_is_told_once() -> None:
    found = told(
        {"event": "start", "step": 0},
        {"event": "replica_failure", "replica": 1, "error": "was killed by SIGKILL"},
        {"event": "replica_restart", "replica": 1, "from_step": 5},
        {"event": "start", "step": 5},
    )
    assert found.counts == {"failure": 1, "restart": 1}


def test_of_very_many_faults_all_are_counted() -> None:
    found = told(*[{"event": "refused", "time": 1.0}] * (MOST_SHOWN + 5))
    assert len(found.faults) == MOST_SHOWN
    assert found.counts["refused"] == MOST_SHOWN + 5


def update(time: float, member: int, incarnation: int) -> Event:
    gradient = {"member": member, "incarnation": incarnation}
    return {"event": "update", "time": time, "gradients": [gradient]}


def test_a_member_is_absent_until_its_successors_first_gradient() -> None:
    lost = {"event": "failure", "time": 10.0, "member": 1, "incarnation": 0, "rank": 1}
    # What it had sent before it died may still be applied.
    found = told(lost, update(11.0, 1, 0), update(12.0, 0, 0), update(15.0, 1, 1), update(16.0, 1, 1))
    assert found.absent() == [(1, 10.0, 15.0)]


def test_a_member_that_never_came_back_is_absent_to_the_end() -> None:
    lost = {"event": "failure", "time": 10.0, "member": 1, "incarnation": 0, "rank": 1}
    assert told(lost, {"event": "checkpoint", "time": 30.0}).absent() == [(1, 10.0, 30.0)]


def test_a_successor_that_fails_before_its_first_gradient_ends_no_absence() -> None:
    lost = {"event": "failure", "time": 10.0, "member": 1, "incarnation": 0, "rank": 1}
    again = {**lost, "time": 14.0, "incarnation": 1}
    # The successor of the second comes back: not the one that failed.
    found = told(lost, again, update(15.0, 1, 1), update(19.0, 1, 2))
    assert found.absent() == [(1, 10.0, 19.0)]


def test_a_member_that_came_back_is_absent_anew() -> None:
    lost = {"event": "failure", "time": 10.0, "member": 1, "incarnation": 0, "rank": 1}
    again = {**lost, "time": 20.0, "incarnation": 1}
    found = told(lost, update(12.0, 1, 1), again, update(23.0, 1, 2))
    assert found.absent() == [(1, 10.0, 12.0), (1, 20.0, 23.0)]


def test_nobody_is_absent_once_all_have_started_again() -> None:
    lost = {"event": "failure", "time": 10.0, "member": 1, "incarnation": 2, "rank": 1}
    start = {"event": "start", "time": 18.0, "step": 5}
    found = told(lost, start, update(20.0, 1, 0), {"event": "checkpoint", "time": 90.0})
    assert found.absent() == [(1, 10.0, 18.0)]
    # The incarnations are counted anew.
    for event in ({**lost, "time": 91.0, "incarnation": 0}, update(95.0, 1, 1)):
        found.add(event)
    assert found.absent() == [(1, 10.0, 18.0), (1, 91.0, 95.0)]


def test_updates_are_read_only_while_somebody_is_absent() -> None:
    line = json.dumps({"time": 1795856641.892, **update(0, 1, 0)}).encode()
    found = Happenings()
    assert not found.wants(line)
    found.add({"event": "failure", "time": 10.0, "member": 1, "incarnation": 0})
    assert found.wants(line)
    assert found.wants(b'{"time": 1795856641.892, "event": "checkpoint"}')


def histogram(since: int, step: int, **gradients: int) -> Event:
    named = {name.removeprefix("s"): times for name, times in gradients.items()}
    return {"event": "staleness", "since_step": since, "step": step, "gradients": named}


def test_staleness_adds_up_over_the_windows() -> None:
    assert whole([histogram(0, 10, s0=3), histogram(10, 20, s0=1, s2=4)]).counts == {0: 4, 2: 4}


def test_the_histogram_at_the_end_takes_the_place_of_those_before() -> None:
    assert whole([histogram(0, 10, s0=3), histogram(10, 20, s2=4), histogram(0, 20, s0=3, s2=4)]).counts == {
        0: 3,
        2: 4,
    }


def test_steps_that_were_made_again_count_once() -> None:
    assert whole([histogram(0, 10, s0=3), histogram(10, 20, s9=9), histogram(10, 20, s1=1)]).counts == {
        0: 3,
        1: 1,
    }


def test_a_histogram_that_cannot_be_read_is_passed_over() -> None:
    strangers: list[Event] = [{"event": "staleness"}, {"event": "staleness", "gradients": {"x": 1}}]
    assert whole([*strangers, histogram(0, 10, s0=3)]).counts == {0: 3}
