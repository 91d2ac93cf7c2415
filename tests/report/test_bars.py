"""Tests of the charts of time and of staleness."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

from dist_train.report.bars import MOST_WORKERS, draw_staleness, draw_time
from dist_train.report.charts import Bars
from dist_train.report.goodput import USES
from tests.report.test_drawing import texts

NOTHING = dict.fromkeys(USES, 0.0)


def test_each_worker_is_a_bar_with_its_shares() -> None:
    workers = {"0": {**NOTHING, "computation": 3.0, "data": 1.0}, "1": {**NOTHING, "computation": 4.0}}
    found = texts(draw_time("time-0", "mine", workers))
    assert {"Time of each worker: mine", "0", "1", "75%", "25%", "100%"} <= set(found)
    assert {"computation", "waiting for data"} <= set(found)
    assert "recovery" not in found


def test_of_many_workers_those_that_lose_most_are_shown_and_the_mean() -> None:
    workers = {
        f"w{number}": {**NOTHING, "computation": 100.0 - number, "data": 1.0 + number} for number in range(64)
    }
    found = {text for text in texts(draw_time("time-0", "mine", workers)) if text.startswith(("w", "mean"))}
    assert found - {"worker", "waiting for data"} == {
        f"w{number}" for number in range(64 - MOST_WORKERS, 64)
    } | {"mean"}


def test_staleness_is_in_updates_and_shares() -> None:
    found = texts(draw_staleness([Bars("a", 0, {0: 0.5, 1: 0.5}), Bars("b", 1, {3: 1.0})]))
    assert {"staleness (updates)", "share of gradients", "a", "b"} <= set(found)


def test_very_stale_gradients_share_bars() -> None:
    found = texts(draw_staleness([Bars("a", 0, {0: 0.5, 100: 0.5})]))
    assert "staleness (updates, from; 5 in a bar)" in found
