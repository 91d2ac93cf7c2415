"""Tests of the timeline: that it is in Chrome's trace format, and says when what happened."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from dist_train import report
from dist_train.report.measured import measure
from dist_train.report.subjects import find
from dist_train.report.trace import trace
from tests.report.conftest import TIMES, MakeRun, train, validation

EVENTS = [
    {"event": "start", "time": 100.0, "step": 0},
    {"event": "checkpoint", "time": 101.0, "step": 10, "seconds": 0.25, "stall_s": 0.1},
    {"event": "failure", "time": 103.0, "rank": 1, "step": 30},
    {"event": "restart", "time": 103.0, "from_step": 10},
    {"event": "start", "time": 107.0, "step": 10},
]
SECOND = 1e6


@pytest.fixture
def events(make_run: MakeRun) -> list[dict[str, Any]]:
    two = [TIMES, {**TIMES, "communication": 0.0}]
    lines = [train(10, 1.0, worker_times=two), validation(10, 1.25), train(20, 2.25, worker_times=two)]
    runs = [measure(name, make_run(name, metrics=lines, events=EVENTS), 10) for name in ("a", "b")]
    found: list[dict[str, Any]] = json.loads(json.dumps(trace(runs), allow_nan=False))["traceEvents"]
    return found


def of(events: list[dict[str, Any]], phase: str, process: int = 0) -> list[dict[str, Any]]:
    return [event for event in events if event["ph"] == phase and event["pid"] == process]


def test_each_run_is_a_process_and_each_worker_a_track(events: list[dict[str, Any]]) -> None:
    named = [event["args"]["name"] for event in events if event["ph"] == "M" and "name" in event["args"]]
    tracks = ["run", "checkpoints", "worker 0", "worker 1"]
    assert named == ["a", *tracks, "b", *tracks]


def test_slices_of_a_track_do_not_overlap(events: list[dict[str, Any]]) -> None:
    slices = of(events, "X")
    tracks = {event["tid"] for event in slices}
    assert len(tracks) == 4
    for track in tracks:
        own = sorted((event["ts"], event["ts"] + event["dur"]) for event in slices if event["tid"] == track)
        assert all(end <= start + 1 for (_, end), (start, _) in pairwise(own))


def test_what_followed_a_failure_is_later_by_the_clock_than_by_wall_time(
    events: list[dict[str, Any]],
) -> None:
    computing = [event["ts"] / SECOND for event in of(events, "X") if event["name"] == "computation"]
    # Ten steps of 0.09 and 0.07 seconds, up to 1 and 8 seconds after the first start.
    assert sorted(computing) == pytest.approx([0.1, 0.3, 7.1, 7.3])


def test_lost_work_and_recovery_have_their_place(events: list[dict[str, Any]]) -> None:
    found = {
        event["name"]: (event["ts"] / SECOND, event["dur"] / SECOND)
        for event in of(events, "X")
        if event["tid"] == 0
    }
    assert found["lost work"] == pytest.approx((1.25, 1.75))
    assert found["recovery"] == pytest.approx((3.0, 4.0))


def test_checkpoints_end_when_they_are_written(events: list[dict[str, Any]]) -> None:
    (saved,) = [event for event in of(events, "X") if event["tid"] == 1]
    assert saved["ts"] + saved["dur"] == pytest.approx(1.0 * SECOND)
    assert saved["args"] == {"training stood still for (s)": 0.1}


def test_faults_are_marks_on_the_worker_or_on_all(events: list[dict[str, Any]]) -> None:
    failure, restart = of(events, "i")
    assert (failure["name"], failure["s"], failure["tid"], failure["ts"]) == ("failure", "t", 3, 3.0 * SECOND)
    assert (restart["name"], restart["s"]) == ("restart", "p")


def test_measures_are_counters(events: list[dict[str, Any]]) -> None:
    losses = [event["args"]["loss"] for event in of(events, "C", process=1) if event["name"] == "loss"]
    assert losses == [1.0, 1.0]


# As the clock of a machine has it: seconds since 1970.
NOW = 1_795_856_641.0


def of_pair(make_run: MakeRun, told: list[dict[str, Any]], *replicas: list[dict[str, Any]]) -> Any:
    run = make_run("pair", events=told)
    for number, events in enumerate(replicas):
        lines = [train(10, 1.0)] if events else []
        make_run(f"pair/replica_{number}", metrics=lines, events=events)
    return trace([each.measured for each in report._measured(find([run]))])["traceEvents"]


def test_replicas_of_a_run_line_up(make_run: MakeRun) -> None:
    starts = [[{"event": "start", "time": NOW + late, "step": 0}] for late in (3.0, 0.0)]
    events = of_pair(make_run, [], *starts)

    def at(kind: str, name: str) -> list[float]:
        of_both = [*of(events, kind, 0), *of(events, kind, 1)]
        return [event["ts"] / SECOND for event in of_both if event["name"] == name]

    assert at("X", "computation") == pytest.approx([3.1, 0.1])
    assert at("C", "loss") == pytest.approx([4.0, 1.0])


def test_a_replica_that_was_killed_while_starting_has_its_place_beside_the_others(make_run: MakeRun) -> None:
    told = [{"event": "replica_failure", "time": NOW + 2.0, "replica": 1, "error": "was killed"}]
    events = of_pair(make_run, told, [{"event": "start", "time": NOW, "step": 0}], [])
    (failure,) = of(events, "i", process=1)
    assert failure["ts"] / SECOND == pytest.approx(2.0)


def test_without_a_start_times_count_from_the_first_event(make_run: MakeRun) -> None:
    torn = [
        {"event": "checkpoint", "time": NOW, "step": 10, "seconds": 0.25, "stall_s": 0.1},
        {"event": "failure", "time": NOW + 1.5, "rank": 0, "step": 15},
        {"event": "warned", "warning": "says no time"},
    ]
    run = measure("run", make_run(metrics=[train(10, 1.0)], events=torn), 10)
    events = trace([run])["traceEvents"]
    assert [event["ts"] / SECOND for event in of(events, "i")] == pytest.approx([1.5, 0.0])
    assert all(event["ts"] < 10 * SECOND for event in events if "ts" in event)


def test_lines_without_wall_time_leave_a_trace_that_can_be_written(make_run: MakeRun) -> None:
    bare = train(10, 1.0)
    del bare["wall_s"], bare["times"]
    json.dumps(trace([measure("run", make_run(metrics=[bare]), 10)]), allow_nan=False)


def test_a_run_without_records_has_a_track_of_its_own(make_run: MakeRun) -> None:
    assert trace([measure("run", make_run(), 10)])["traceEvents"]
