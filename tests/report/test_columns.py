"""Tests of taking lines apart: lines of several shapes, in their order, and lines that are none."""

from __future__ import annotations

import numpy as np

from dist_train.report.columns import Gatherer, is_number
from tests.report.conftest import TIMES, Record, train, validation


def gathered(*lines: Record) -> Gatherer:
    gatherer = Gatherer()
    for line in lines:
        gatherer.add(line)
    return gatherer


def test_lines_become_columns_of_their_kind_in_their_order() -> None:
    found = gathered(train(1, 0.5), validation(1, 0.6), train(2, 1.0)).take()
    assert found["train"].column("step").tolist() == [1, 2]
    assert found["train"].at.tolist() == [0, 2]
    assert found["val"].column("accuracy").tolist() == [0.9]
    assert found["val"].at.tolist() == [1]


def test_what_only_some_lines_have_is_nan_in_the_others() -> None:
    found = gathered(train(1, 0.5), train(2, 1.0, grad_norm=3.0), train(3, 1.5)).take()["train"]
    np.testing.assert_array_equal(found.column("grad_norm"), [np.nan, 3.0, np.nan])
    assert found.column("step").tolist() == [1, 2, 3]
    assert found.not_finite["grad_norm"] == 0
    assert np.isnan(found.column("nowhere")).all()


def test_values_that_are_not_finite_are_counted() -> None:
    lines = [train(1, 0.5, loss="NaN"), train(2, 1.0, loss=2.0), train(3, 1.5, loss="-Infinity")]
    found = gathered(*lines).take()["train"]
    assert found.not_finite["loss"] == 2
    np.testing.assert_array_equal(found.column("loss"), [np.nan, 2.0, -np.inf])


def test_the_times_of_all_workers_are_kept() -> None:
    slow = {**TIMES, "forward": 9.0}
    (workers,) = gathered(train(1, 0.5, worker_times=[TIMES, slow])).take()["train"].workers
    assert workers.names == ("0", "1")
    assert workers.figures.tolist() == [[list(TIMES.values()), list(slow.values())]]
    assert workers.times is None


def test_who_does_not_say_how_long_it_waited_for_other_replicas_did_not_wait() -> None:
    times = {phase: seconds for phase, seconds in TIMES.items() if phase != "waiting"}
    (workers,) = gathered(train(1, 0.5, times=times)).take()["train"].workers
    assert workers.figures.tolist() == [[[*times.values(), 0.0]]]


def test_another_number_of_workers_is_kept_apart() -> None:
    lines = [train(1, 0.5, worker_times=[TIMES] * 2), train(2, 1.0, worker_times=[TIMES] * 3)]
    two, three = gathered(*lines).take()["train"].workers
    assert (two.names, list(two.places)) == (("0", "1"), [0])
    assert (three.names, list(three.places)) == (("0", "1", "2"), [1])


def test_members_of_a_server_are_known_by_name() -> None:
    member = {"samples_per_s": 1.0, "staleness": 0.0, "dropped": 2, "waiting": 0.5}
    line = train(1, 0.5, workers=[{"name": "0-1", **member}, {"name": "2-3", **member}])
    (workers,) = gathered(line).take()["train"].workers
    assert workers.names == ("0-1", "2-3")
    assert workers.figures.tolist() == [[[0.5, 2.0], [0.5, 2.0]]]
    assert workers.times is not None
    assert workers.times.tolist() == [list(TIMES.values())]


def test_lines_of_no_run_are_refused_and_leave_nothing_behind() -> None:
    gatherer = Gatherer()
    strangers: list[Record] = [
        {"kind": "other", "step": 1},
        {"kind": ["train"]},
        {"kind": "train"},
        train(1, 0.5, worker_times=[{}]),
        train(1, 0.5, workers=3),
        train(1, 0.5, times={}),
    ]
    assert [gatherer.add(line) for line in strangers] == [False] * len(strangers)
    assert gatherer.take() == {}


def test_a_value_of_another_kind_spoils_itself_alone() -> None:
    found = gathered(train(1, 0.5), train(2, 1.0, loss={"a": 1})).take()["train"]
    np.testing.assert_array_equal(found.column("loss"), [1.0, np.nan])
    assert found.column("step").tolist() == [1, 2]


def test_taking_empties_it() -> None:
    gatherer = gathered(train(1, 0.5))
    assert gatherer.size == 1
    gatherer.take()
    assert gatherer.size == 0
    assert gatherer.take() == {}


def test_numbers_are_those_of_the_records() -> None:
    assert all(map(is_number, (1, 0.5, "NaN", "Infinity", "-Infinity")))
    assert not any(map(is_number, ("1", None, [1], 10**400)))
