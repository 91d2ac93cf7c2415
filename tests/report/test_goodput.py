"""Tests of how a worker's time is divided up."""

from __future__ import annotations

import numpy as np
import pytest

from dist_train.report.goodput import USES, Interruptions, goodput, mean, spent

# computation, data, communication, stragglers, dropped
SECONDS = {"0": np.array([50.0, 5.0, 10.0, 15.0, 0.0])}


def test_all_uses_add_up_to_the_wall_time_and_what_failures_cost() -> None:
    around = Interruptions(validation=6.0, checkpoints=1.0, lost=20.0, recovery=8.0)
    found = spent(SECONDS, 100.0, around)["0"]
    assert sum(found.values()) == pytest.approx(100.0 + 20.0 + 8.0)
    assert found["dropped"] == 20.0
    assert found["recovery"] == 8.0
    assert found["other"] == pytest.approx(13.0)


def test_a_worker_that_is_not_there_computes_nothing() -> None:
    around = Interruptions(replaced={"0": 40.0})
    found = spent({**SECONDS, "1": SECONDS["0"]}, 100.0, around)
    assert found["0"]["recovery"] == 40.0
    # Of these 20 seconds were in no line anyway.
    assert found["0"]["computation"] == pytest.approx(30.0)
    assert sum(found["0"].values()) == pytest.approx(100.0)
    assert found["1"]["computation"] == 50.0


def test_updates_that_were_rolled_back_were_computed_in_vain() -> None:
    found = spent(SECONDS, 100.0, Interruptions(rolled_back=10.0))["0"]
    assert (found["computation"], found["dropped"]) == (40.0, 10.0)


def test_goodput_is_the_share_of_computation_that_counts() -> None:
    assert goodput(spent(SECONDS, 100.0, Interruptions())["0"]) == pytest.approx(0.5)
    assert goodput(spent(SECONDS, 100.0, Interruptions(lost=100.0))["0"]) == pytest.approx(0.25)


def test_without_time_there_is_no_goodput() -> None:
    assert goodput(mean({})) is None
    assert goodput(dict.fromkeys(USES, 0.0)) is None
