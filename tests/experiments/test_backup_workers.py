"""The predictions beside which backup workers are measured."""

from __future__ import annotations

from experiments.backup_workers import BACKUPS, predictions


def test_a_step_is_the_shorter_the_fewer_it_waits_for():
    for prediction in predictions():
        steps = [prediction[b] for b in BACKUPS]
        assert steps == sorted(steps, reverse=True)


def test_without_backup_workers_nobody_is_late():
    independent, busy = predictions()
    # 20,000 simulated updates of a tail this long: 2% are two standard errors and more.
    assert abs(busy[0] / independent[0] - 1) < 0.02


def test_who_is_late_for_the_next_update_too_helps_less():
    independent, busy = predictions()
    assert all(busy[b] > independent[b] for b in BACKUPS if b > 0)
