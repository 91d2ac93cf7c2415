"""Tests of each worker's time as training lines tell it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dist_train.report.columns import Gatherer
from dist_train.report.goodput import BY_LINE
from dist_train.report.working import Working
from tests.report.conftest import TIMES, Record, train


def worked(*lines: Record, validation_s: list[float] | None = None, **start: float) -> Working:
    working, gatherer = Working(limit=10, **start), Gatherer()  # type: ignore[arg-type]
    for line in lines:
        gatherer.add(line)
    working.add(gatherer.take()["train"], np.array(validation_s or [0.0] * len(lines)))
    return working


def of(working: Working, worker: str) -> dict[str, Any]:
    return dict(zip(BY_LINE, working.totals[worker], strict=True))


def test_times_of_a_step_count_for_all_steps_since_the_line_before() -> None:
    working = worked(train(10, 1.0), train(30, 3.0), step=5)
    assert of(working, "0")["computation"] == pytest.approx(25 * 0.06)
    assert of(working, "0")["data"] == pytest.approx(25 * 0.01)
    assert of(working, "0")["communication"] == pytest.approx(25 * 0.02)


def test_what_the_last_worker_does_not_need_the_others_wait_for_it() -> None:
    quick, slow = {**TIMES, "communication": 0.5}, {**TIMES, "communication": 0.1}
    working = worked(train(10, 10.0, worker_times=[quick, slow]))
    assert of(working, "0")["communication"] == pytest.approx(1.0)
    assert of(working, "0")["stragglers"] == pytest.approx(4.0)
    assert of(working, "1")["communication"] == pytest.approx(1.0)
    assert of(working, "1")["stragglers"] == pytest.approx(0.0)


def test_a_replica_that_is_waited_for_takes_the_time_of_those_that_wait() -> None:
    """Of two that exchange predictions one is five times slower."""
    working = worked(train(10, 3.0, times={**TIMES, "waiting": 0.24}))
    assert of(working, "0")["stragglers"] == pytest.approx(2.4)
    assert of(working, "0")["computation"] == pytest.approx(0.6)


def through_server(step: int, wall_s: float, waiting: float, dropped: int, **causes: float) -> Record:
    member = {"name": "0", "samples_per_s": 1.0, "staleness": 0.0, "dropped": dropped, "waiting": waiting}
    every = {f"waiting_{cause}": 0.0 for cause in ("quorum", "server", "bound", "work", "data")}
    given = {f"waiting_{cause}": seconds for cause, seconds in causes.items()}
    return train(step, wall_s, workers=[member]) | every | given


def test_through_a_server_waiting_goes_by_its_causes() -> None:
    causes = {"quorum": 1.0, "bound": 1.0, "server": 1.0, "data": 1.0}
    found = of(worked(through_server(10, 10.0, 0.4, 0, **causes)), "0")
    assert found["stragglers"] == pytest.approx(2.0)
    assert found["communication"] == pytest.approx(1.0)
    assert found["data"] == pytest.approx(1.0)
    assert found["computation"] == pytest.approx(6.0)


def test_dropped_gradients_take_as_long_as_others_and_count_once() -> None:
    lines = [through_server(10, 10.0, 0.0, 50), through_server(20, 20.0, 0.0, 50)]
    found = of(worked(*lines), "0")
    assert found["dropped"] == pytest.approx(50 * 0.06)
    assert found["computation"] == pytest.approx(20.0 - 3.0)


def test_validations_are_no_work_of_a_member() -> None:
    found = of(worked(through_server(10, 10.0, 0.0, 0), validation_s=[4.0]), "0")
    assert found["computation"] == pytest.approx(6.0)


def test_windows_are_between_two_lines() -> None:
    shown = [(name, start, end) for name, start, end, _ in worked(train(10, 1.0), train(20, 3.0)).shown()]
    assert shown == [("0", 0.0, 1.0), ("0", 1.0, 3.0)]


def test_lines_without_wall_time_or_step_do_no_harm() -> None:
    bare = train(10, 1.0)
    del bare["wall_s"]
    working = worked(bare, train(20, 2.0))
    assert np.isfinite(working.totals["0"]).all()
    assert (working.step, working.wall_s) == (20.0, 2.0)
