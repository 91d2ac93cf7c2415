"""What a report says to a person and to a program."""

from __future__ import annotations

import json
from pathlib import Path

from dist_train.evaluate.report import Churn, Measured, Report
from dist_train.watch.records import to_json

ONE = Measured(Path("runs/a"), 1360, ({"loss": 0.5, "accuracy": 0.925},))
TWO = Measured(
    Path("runs/longer"),
    360,
    ({"loss": 0.25, "accuracy": 0.95}, {"loss": 12.5, "accuracy": 0.05}),
    {"loss": 0.125, "accuracy": 1.0},
)


def test_the_table_is_aligned() -> None:
    assert Report((ONE, TWO), (Churn("replica_0", 0.03, 0.125),)).text() == (
        "run          model      samples     loss  accuracy\n"
        "runs/a       replica_0    1,360   0.5000    92.50%\n"
        "runs/longer  replica_0      360   0.2500    95.00%\n"
        "runs/longer  replica_1      360  12.5000     5.00%\n"
        "runs/longer  ensemble       360   0.1250   100.00%\n"
        "\n"
        "churn      mean abs difference  changed labels\n"
        "replica_0               0.0300          12.50%"
    )


def test_measures_that_a_run_lacks_are_dashes() -> None:
    other = Measured(Path("b"), 10, ({"loss": 1.0, "bits_per_byte": 2.0},))
    lines = Report((ONE, other), (Churn("replica_0", 0.03, None),)).text().splitlines()
    assert lines[0].split() == ["run", "model", "samples", "loss", "accuracy", "bits_per_byte"]
    assert lines[1].split() == ["runs/a", "replica_0", "1,360", "0.5000", "92.50%", "-"]
    assert lines[2].split() == ["b", "replica_0", "10", "1.0000", "-", "2.0000"]
    assert lines[-1].split() == ["replica_0", "0.0300", "-"]


def test_an_ensemble_without_a_loss_says_why() -> None:
    without = Measured(Path("a"), 360, TWO.replicas, {"accuracy": 1.0})
    text = Report((without,)).text()
    assert "The ensemble has no loss" in text
    assert "no loss" not in Report((TWO,)).text()


def test_the_object_has_all_of_it() -> None:
    report = Report((ONE, TWO), (Churn("replica_0", 0.03, 0.125), Churn("ensemble", 0.01, None)))
    assert json.loads(to_json(report.record())) == {
        "runs": [
            {
                "run": "runs/a",
                "samples": 1360,
                "replicas": [{"replica": 0, "model": "replica_0", "val": {"loss": 0.5, "accuracy": 0.925}}],
            },
            {
                "run": "runs/longer",
                "samples": 360,
                "replicas": [
                    {"replica": 0, "model": "replica_0", "val": {"loss": 0.25, "accuracy": 0.95}},
                    {"replica": 1, "model": "replica_1", "val": {"loss": 12.5, "accuracy": 0.05}},
                ],
                "ensemble": {"val": {"loss": 0.125, "accuracy": 1.0}},
            },
        ],
        "churn": [
            {"between": "replica_0", "mean_abs_difference": 0.03, "changed_labels": 0.125},
            {"between": "ensemble", "mean_abs_difference": 0.01, "changed_labels": None},
        ],
    }


def test_without_two_runs_there_is_no_churn() -> None:
    assert "churn" not in Report((ONE,)).record()
    assert "churn" not in Report((ONE,)).text()
