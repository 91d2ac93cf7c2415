"""Tests of which charts a report has, and where faults are marked in them."""

from __future__ import annotations

import pytest

from dist_train.report.charts import MOST_MARKS, Chart, charts, marks, staleness
from dist_train.report.measured import Measured, measure
from tests.report.conftest import MakeRun, train, validation

START = {"event": "start", "time": 100.0, "step": 0}


def by_name(*runs: Measured) -> dict[str, Chart]:
    return {chart.name: chart for chart in charts(runs)}


def test_losses_come_first_and_then_the_tasks_own_metrics(make_run: MakeRun) -> None:
    run = measure("a", make_run(metrics=[train(10, 1.0), validation(10, 1.2)]), 10)
    assert list(by_name(run)) == [
        "training-loss",
        "validation-loss",
        "validation-accuracy",
        "training-lr",
        "training-samples-per-s",
    ]


def test_runs_are_side_by_side_where_they_have_the_measure(make_run: MakeRun) -> None:
    plain = measure("a", make_run("a", metrics=[train(10, 1.0)]), 10)
    taught = measure("b", make_run("b", metrics=[train(10, 1.0, agreement=0.5, teacher_age=20.0)]), 10)
    found = by_name(plain, taught)
    assert [(line.label, line.number) for line in found["training-loss"].lines] == [("a", 0), ("b", 1)]
    assert [(line.label, line.number) for line in found["training-agreement"].lines] == [("b", 1)]
    assert found["training-teacher-age"].section == "teaching"


def test_counts_that_stay_zero_are_no_chart(make_run: MakeRun) -> None:
    none = measure("a", make_run("a", metrics=[train(10, 1.0, dropped=0, refused=0, staleness=1.5)]), 10)
    some = measure("b", make_run("b", metrics=[train(10, 1.0, dropped=3, refused=0, staleness=1.5)]), 10)
    assert set(by_name(none)) & {"training-dropped", "training-refused"} == set()
    assert set(by_name(none, some)) & {"training-dropped", "training-refused"} == {"training-dropped"}


def test_a_loss_over_several_magnitudes_has_a_logarithmic_scale(make_run: MakeRun) -> None:
    wide = [train(10, 1.0, loss=10.0), train(20, 2.0, loss=0.01)]
    narrow = [train(10, 1.0, loss=2.0), train(20, 2.0, loss=1.0)]
    below_zero = [train(10, 1.0, loss=10.0), train(20, 2.0, loss=-0.01)]
    scales = [
        by_name(measure(name, make_run(name, metrics=lines), 10))["training-loss"].logarithmic
        for name, lines in {"wide": wide, "narrow": narrow, "below": below_zero}.items()
    ]
    assert scales == [True, False, False]


def test_names_of_files_hold_nothing_but_letters_and_digits(make_run: MakeRun) -> None:
    line = validation(10, 1.0) | {"../top 5 <b>": 0.5}
    found = by_name(measure("a", make_run(metrics=[line]), 10))
    assert "validation----top-5--b-" in found


def test_wall_time_of_curves_and_faults_counts_what_failures_cost(make_run: MakeRun) -> None:
    """Killed a second after step 10 of a checkpoint at step 10; a second later it starts again."""
    events = [
        START,
        {"event": "failure", "time": 102.0, "rank": 0, "step": 20},
        {"event": "restart", "time": 102.0, "from_step": 10},
        {"event": "start", "time": 103.0, "step": 10},
    ]
    run = measure("a", make_run(metrics=[train(10, 1.0), train(20, 2.0)], events=events), 10)
    (line,) = by_name(run)["training-loss"].lines
    assert line.at["wall_s"].tolist() == pytest.approx([1.0, 4.0])
    assert marks(run, 0)[0].at["wall_s"] == pytest.approx(2.0)


def test_faults_are_marked_at_their_step_on_every_axis(make_run: MakeRun) -> None:
    failure = {"event": "failure", "time": 101.5, "rank": 0, "step": 15}
    run = measure("a", make_run(metrics=[train(10, 1.0), train(20, 2.0)], events=[START, failure]), 10)
    (mark,) = marks(run, 3)
    assert (mark.kind, mark.number) == ("failure", 3)
    assert mark.at == {"samples": 150.0, "step": 15.0, "wall_s": pytest.approx(1.5)}


def test_a_fault_without_a_step_is_marked_by_the_clock(make_run: MakeRun) -> None:
    hung = {"event": "hung", "time": 101.5, "ranks": [0], "reason": "worker 0 hangs"}
    run = measure("a", make_run(metrics=[train(10, 1.0), train(20, 2.0)], events=[START, hung]), 10)
    assert marks(run, 0)[0].at["step"] == pytest.approx(15.0)


def test_very_many_faults_do_not_hide_the_curves(make_run: MakeRun) -> None:
    refused = {"event": "refused", "time": 101.0, "step": 5}
    run = measure("a", make_run(metrics=[train(10, 1.0)], events=[START, *[refused] * (MOST_MARKS + 9)]), 10)
    assert len(marks(run, 0)) == MOST_MARKS


def test_staleness_is_in_shares_of_each_runs_gradients(make_run: MakeRun) -> None:
    histogram = {"event": "staleness", "since_step": 0, "step": 10, "gradients": {"0": 1, "2": 3}}
    runs = [
        measure("a", make_run("a"), 10),
        measure("b", make_run("b", events=[START, histogram]), 10),
    ]
    (bars,) = staleness(runs)
    assert (bars.label, bars.number, bars.shares) == ("b", 1, {0: 0.25, 2: 0.75})
