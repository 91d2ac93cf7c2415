"""Whose memory is whose, and what it is compared with."""

import pytest

from benchmarks.memory import role_of, share


@pytest.mark.parametrize(
    ("title", "role"),
    [
        ("ray::worker_12.call", "worker"),
        ("ray::shard_0", "shard"),
        ("ray::the_coordinator.call", "coordinator"),
        ("ray::DashboardAgent", None),
        ("/usr/bin/python -u default_worker.py", None),
    ],
)
def test_a_process_is_known_by_its_title(title, role):
    assert role_of(title) == role


def test_a_run_that_holds_just_what_must_exist_holds_it_once():
    small = {"worker": [300.0, 300.0], "shard": [250.0], "coordinator": [280.0]}
    # Of 40 MB a worker needs three times as much, a shard too, the coordinator twice; whoever holds it.
    large = {"worker": [460.0, 380.0], "shard": [370.0], "coordinator": [360.0]}
    assert share({"server_memory_mb": {"mlp": large, "tiny": small}, "parameters_mb": 40.0}) == 1.0
