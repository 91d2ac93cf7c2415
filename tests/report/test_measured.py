"""Tests of what a run's records come to, from its directory."""

from __future__ import annotations

import json

import pytest

from dist_train.report import parts
from dist_train.report.measured import measure
from tests.report.conftest import TIMES, MakeRun, train, validation

START = {"event": "start", "time": 100.0, "step": 0}


def test_curves_are_those_of_training_and_validation(make_run: MakeRun) -> None:
    run = make_run(metrics=[train(10, 1.0, loss=2.0), validation(10, 1.2), train(20, 2.0, loss=1.0)])
    found = measure("run", run, points=10)
    assert set(found.training) == {"loss", "lr", "samples_per_s"}
    assert set(found.validation) == {"loss", "accuracy"}
    loss = found.training["loss"]
    assert loss.mean.tolist() == [2.0, 1.0]
    assert loss.points.column("samples").tolist() == [100.0, 200.0]
    assert loss.points.column("step").tolist() == [10.0, 20.0]
    assert loss.points.column("wall_s").tolist() == [1.0, 2.0]


def test_a_spike_among_a_great_many_lines_is_kept(make_run: MakeRun) -> None:
    lines = [train(step, step / 10, loss=99.0 if step == 7777 else 1.0) for step in range(1, 10_001)]
    loss = measure("run", make_run(metrics=lines), points=50).training["loss"]
    assert len(loss.points) <= 100
    assert loss.points.column("highest").max() == 99.0
    assert loss.points.column("count").sum() == 10_000


def test_a_workers_time_adds_up_to_the_wall_time(make_run: MakeRun) -> None:
    lines = [train(10, 1.0), validation(10, 1.5), train(20, 2.5)]
    saved = {"event": "checkpoint", "time": 102.0, "step": 20, "seconds": 0.3, "stall_s": 0.05}
    spent = measure("run", make_run(metrics=lines, events=[START, saved]), 10).spent()["0"]
    assert sum(spent.values()) == pytest.approx(2.5)
    assert spent["computation"] == pytest.approx(20 * 0.06)
    assert spent["validation"] == pytest.approx(0.25)
    assert spent["checkpoints"] == pytest.approx(0.05)


def test_a_failure_costs_what_was_lost_and_the_way_back(make_run: MakeRun) -> None:
    events = [
        START,
        {"event": "failure", "time": 103.0, "rank": 0, "step": 30},
        {"event": "restart", "time": 103.0, "from_step": 10},
        {"event": "start", "time": 107.0, "step": 10},
    ]
    spent = measure("run", make_run(metrics=[train(10, 1.0), train(20, 2.0)], events=events), 10).spent()["0"]
    assert spent["dropped"] == pytest.approx(2.0)
    assert spent["recovery"] == pytest.approx(4.0)
    assert sum(spent.values()) == pytest.approx(2.0 + 2.0 + 4.0)


def test_validations_count_for_the_next_line_even_in_another_block(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = {"name": "0", "samples_per_s": 1.0, "staleness": 0.0, "dropped": 0, "waiting": 0.0}
    lines = [train(10, 1.0, workers=[member]), validation(10, 1.3), train(20, 2.3, workers=[member])]
    run = make_run(metrics=lines)
    for block in (1, 2, 10):
        monkeypatch.setattr(parts, "BLOCK", block)
        spent = measure("run", run, 10).spent()["0"]
        assert spent["computation"] == pytest.approx(2.3 - 0.25)


def test_a_replaced_member_of_a_server_was_away(make_run: MakeRun) -> None:
    members = [
        {"name": name, "samples_per_s": 1.0, "staleness": 0.0, "dropped": 0, "waiting": 0.0} for name in "01"
    ]
    lost = {"event": "failure", "time": 102.0, "member": 1, "incarnation": 0, "rank": 1}
    back = {"event": "update", "time": 106.0, "gradients": [{"member": 1, "incarnation": 1}]}
    run = make_run(metrics=[train(10, 10.0, workers=members)], events=[START, lost, back])
    spent = measure("run", run, 10).spent()
    assert spent["1"]["recovery"] == pytest.approx(4.0)
    assert spent["0"]["recovery"] == 0.0


def test_the_coordinators_way_back_is_no_time_that_a_member_was_away(make_run: MakeRun) -> None:
    member = {"name": "0", "samples_per_s": 1.0, "staleness": 0.0, "dropped": 0, "waiting": 0.0}
    events = [
        START,
        {"event": "failure", "time": 104.0, "member": 0, "incarnation": 0, "rank": 0},
        {"event": "failure", "time": 108.0, "rank": -1, "step": 8},
        {"event": "restart", "time": 108.0, "from_step": 6},
        {"event": "start", "time": 113.0, "step": 6},
        {"event": "update", "time": 114.0, "gradients": [{"member": 0, "incarnation": 0}]},
        {"event": "checkpoint", "time": 150.0, "step": 40, "seconds": 1.0, "stall_s": 0.0},
    ]
    lines = [train(6, 6.0, workers=[member]), train(43, 43.0, workers=[member])]
    spent = measure("run", make_run(metrics=lines, events=events), 10).spent()["0"]
    # Five seconds until all started again, and two of the six that were kept before.
    assert spent["recovery"] == pytest.approx(5.0 + 2.0)
    assert spent["dropped"] == pytest.approx(2.0)
    assert sum(spent.values()) == pytest.approx(43.0 + 5.0 + 2.0)


def test_what_cannot_be_read_is_counted(make_run: MakeRun) -> None:
    run = make_run(metrics=[train(10, 1.0)])
    with (run / "metrics.jsonl").open("a") as file:
        file.write(f"nonsense\n{json.dumps({'kind': 'train', 'step': 'x'})}\n" + '{"kind": "tra')
    found = measure("run", run, 10)
    assert (found.lines, found.damaged) == (1, 2)


def test_a_run_that_has_written_nothing_yet_is_measured_as_such(make_run: MakeRun) -> None:
    found = measure("run", make_run(), 10)
    assert (found.lines, found.training, found.spent()) == (0, {}, {})


def test_the_last_line_is_remembered(make_run: MakeRun) -> None:
    found = measure("run", make_run(metrics=[train(10, 1.0), train(20, 2.0, worker_times=[TIMES])]), 10)
    assert found.last["step"] == 20
