"""Tests of the report's tables and notes."""

from __future__ import annotations

from pathlib import Path

from dist_train.layout import SUMMARY
from dist_train.report import tables
from dist_train.report.measured import measure
from dist_train.report.subjects import find
from dist_train.report.tables import MOST_FAULTS, Reported, Table
from dist_train.watch.summary import read_summary
from tests.report.conftest import MakeRun, train, validation

START = {"event": "start", "time": 100.0, "step": 0}
DONE = {"status": "done", "mode": "sync", "workers": 2, "steps": 20, "samples": 1200, "wall_s": 3725.0}


def reported(*directories: Path) -> list[Reported]:
    found = []
    for subject in find(directories):
        measured = measure(subject.label, subject.directory, 10)
        summary = read_summary(subject.directory / SUMMARY)
        found.append(Reported(subject, measured, summary, measured.spent()))
    return found


def rows(table: Table) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in table.rows}


def test_figures_of_runs_stand_side_by_side(make_run: MakeRun) -> None:
    val = {"loss": 0.25, "accuracy": 0.975}
    done = make_run("done", metrics=[train(20, 3.0)], summary={**DONE, "val": val})
    going_on = make_run("going", metrics=[train(10, 1.5), validation(10, 1.6)])
    table = tables.headline(reported(done, going_on))
    found = rows(table)
    assert table.head == ("", "done", "going")
    assert found["status"] == ("done", "no summary: running or killed")
    assert found["mode"] == ("sync, 2 workers", "sync, 1 worker")
    assert found["samples"] == ("1,200", "100")
    assert found["wall time"] == ("1h 02m", "1.6s")
    assert found["validation"] == ("loss 0.2500, accuracy 97.50%", "loss 0.5000, accuracy 90.00%")


def test_wall_time_counts_what_failures_cost(make_run: MakeRun) -> None:
    failed = [
        START,
        {"event": "failure", "time": 103.0, "rank": 0, "step": 20},
        {"event": "restart", "time": 103.0, "from_step": 10},
        {"event": "start", "time": 105.0, "step": 10},
    ]
    run = make_run(metrics=[train(10, 1.0), train(20, 2.0)], events=failed)
    assert rows(tables.headline(reported(run)))["wall time"] == ("6.0s",)


def test_a_row_that_no_run_fills_is_left_out(make_run: MakeRun) -> None:
    assert (
        not {"staleness", "gradients", "agreement", "error"}
        & rows(tables.headline(reported(make_run()))).keys()
    )


def test_where_the_time_went_is_in_shares_and_seconds(make_run: MakeRun) -> None:
    found = rows(tables.times(reported(make_run(metrics=[train(10, 1.0)]))))
    assert found["computation"] == ("60.0% (0.6s)",)
    assert found["communication"] == ("20.0% (0.2s)",)
    assert "recovery" not in found


def test_faults_are_listed_with_when_and_where(make_run: MakeRun) -> None:
    failure = {"event": "failure", "time": 165.0, "rank": 1, "step": 15, "phase": "forward", "error": "boom"}
    found = tables.faults(reported(make_run(metrics=[train(20, 99.0)], events=[START, failure])))
    assert found.rows == (("run", "1m 05s", "15", "failure", "worker 1 failed in phase forward: boom"),)
    assert found.left_out == 0


def test_faults_of_a_run_without_a_start_are_after_its_first_event(make_run: MakeRun) -> None:
    first, second = (
        {"event": "failure", "time": time, "rank": 0} for time in (1_795_856_641.0, 1_795_856_706.0)
    )
    untimed = {"event": "warned", "warning": "says no time"}
    found = tables.faults(reported(make_run(events=[first, second, untimed])))
    assert [row[1] for row in found.rows] == ["0.0s", "1m 05s", "–"]


def test_of_very_many_faults_the_rest_is_counted(make_run: MakeRun) -> None:
    refused = {"event": "refused", "time": 101.0, "step": 5}
    found = tables.faults(reported(make_run(events=[START, *[refused] * 1000])))
    assert len(found.rows) == MOST_FAULTS
    assert len(found.rows) + found.left_out == 1000


def test_only_settings_that_differ_are_told(make_run: MakeRun) -> None:
    one = make_run("one", config="name: x\nparallel: {workers: 2, group: null}\n")
    other = make_run("other", config="name: x\nparallel: {workers: 3, group: null}\nseed: 1\n")
    table = tables.differences(find([one, other]))
    assert rows(table) == {"parallel.workers": ("2", "3"), "seed": ("–", "1")}


def test_notes_say_what_is_missing(make_run: MakeRun) -> None:
    half = make_run("half", metrics=[train(10, 1.0), train(20, 2.0, loss="NaN")])
    with (half / "metrics.jsonl").open("a") as file:
        file.write("nonsense\n")
    said = tables.notes(reported(half, make_run("empty", config=": [")))
    assert said == [
        "half: no summary. The run is going on, or was killed; this is what it wrote so far.",
        "half: 1 line of the records could not be read.",
        "half: 1 value of loss were NaN or infinite; not drawn.",
        "empty: no training was logged yet, so there is nothing to draw.",
        "empty: config.yaml is missing or cannot be read.",
    ]


def test_a_run_that_is_done_needs_no_note(make_run: MakeRun) -> None:
    assert tables.notes(reported(make_run(metrics=[train(10, 1.0)], summary=DONE))) == []
