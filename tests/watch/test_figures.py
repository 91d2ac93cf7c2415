"""Tests of a run's figures as text."""

from __future__ import annotations

import math

import pytest

from dist_train.watch.figures import (
    as_text,
    duration,
    fitting,
    measure,
    metric,
    one_line,
    outcome,
    places,
    quantity,
    remaining_seconds,
    smoothed,
)

SUMMARY = {
    "status": "done",
    "mode": "sync",
    "workers": 2,
    "replicas": 1,
    "steps": 1460,
    "samples": 29440,
    "wall_s": 83.2,
    "samples_per_s": 2400.0,
    "restarts": 0,
    "val": {"loss": 0.1, "accuracy": 0.9722},
}


@pytest.mark.parametrize(
    ("samples", "total", "rate", "seconds"),
    [
        (0, 1000, 10.0, 100.0),
        (600, 1000, 4.0, 100.0),
        (1000, 1000, 4.0, 0.0),
        (1001, 1000, 4.0, 0.0),
        (0, 1000, 0.0, None),
        (0, 1000, math.nan, None),
        (0, 1000, math.inf, None),
    ],
)
def test_the_time_left_is_the_samples_left_over_the_rate(
    samples: int, total: int, rate: float, seconds: float | None
) -> None:
    assert remaining_seconds(samples, total, rate) == seconds


def test_a_smoothed_rate_starts_at_the_first_and_follows_the_rest() -> None:
    assert smoothed(None, 100.0) == 100.0
    assert smoothed(100.0, 200.0) == pytest.approx(130.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "?"),
        (0.0, "0.0s"),
        (0.34, "0.3s"),
        (9.96, "10s"),
        (59.4, "59s"),
        (59.6, "1m 00s"),
        (83, "1m 23s"),
        (3599.7, "1h 00m"),
        (7500, "2h 05m"),
        (86399.9, "1d 00h"),
        (273600, "3d 04h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (0.519, "0.52"),
        (9.996, "10.0"),
        (87.14, "87.1"),
        (999.4, "999"),
        (999.6, "1.00k"),
        (12345, "12.3k"),
        (1_050_000, "1.05M"),
        (2.5e12, "2500G"),
    ],
)
def test_a_quantity_has_three_digits(value: float, text: str) -> None:
    assert quantity(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.1235"), (0.0, "0.0000"), (1.5e-5, "1.500e-05"), (2e9, "2.000e+09"), (math.nan, "nan")],
)
def test_a_measure_always_shows_digits(value: float, text: str) -> None:
    assert measure(value) == text


def test_only_an_accuracy_that_is_a_share_is_a_percentage() -> None:
    assert metric("accuracy", 0.9722) == ("accuracy", "97.22%")
    assert metric("top5_accuracy", 1.0) == ("top5_accuracy", "100.00%")
    assert metric("accuracy", 97.22) == ("accuracy", "97.2200")
    assert metric("bits_per_byte", 0.5) == ("bits_per_byte", "0.5000")


def test_the_summary_says_what_was_done_and_what_came_of_it() -> None:
    assert outcome(SUMMARY) == {
        "status": "done",
        "mode": "sync, 2 workers",
        "steps": "1,460",
        "samples": "29,440",
        "wall time": "1m 23s",
        "samples/s": "2.40k",
        "restarts": "0",
        "validation": "loss 0.1000  accuracy 97.22%",
    }


def test_the_summary_adds_the_best_validation_and_an_error() -> None:
    rows = outcome({**SUMMARY, "val": {}, "best": {"step": 1200, "loss": 0.05}, "error": "no disk"})
    assert (rows["best"], rows["error"]) == ("step 1,200  loss 0.0500", "no disk")
    assert "validation" not in rows


def test_the_places_are_named_only_where_there_are_any() -> None:
    assert places(SUMMARY) == {}
    assert places({**SUMMARY, "run_dir": "runs/a", "model": None}) == {"run directory": "runs/a"}


def test_figures_are_dropped_from_the_end_until_they_fit() -> None:
    figures = [("loss", "0.1"), ("lr", "0.05"), ("", "fast")]
    whole = "loss 0.1  lr 0.05  fast"
    assert as_text(fitting(figures, len(whole))) == whole
    assert as_text(fitting(figures, len(whole) - 1)) == "loss 0.1  lr 0.05"
    assert as_text(fitting(figures, 0)) == "loss 0.1"


def test_foreign_text_cannot_move_the_cursor_or_start_a_line() -> None:
    assert one_line("a\nb\x1b[31mc\r\n") == "a b [31mc"
