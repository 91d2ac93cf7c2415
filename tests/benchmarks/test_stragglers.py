"""The ideals that uneven workers are held to."""

import pytest

from benchmarks.stragglers import ideals


def test_sync_and_backup_are_held_to_four_even_workers_and_async_to_all_five():
    speeds = {"four_even": [40.0], "one_even": [10.0], "sync": [10.0], "backup": [36.0], "async": [21.0]}
    shares = ideals(speeds)
    assert shares["sync"] == pytest.approx([0.25])
    assert shares["backup"] == pytest.approx([0.9])
    # Four workers at 10 and one at 2.
    assert shares["async"] == pytest.approx([21 / 42])


def test_a_mode_is_compared_within_its_round():
    drift = [1.0, 0.5]
    speeds = {name: [10 * d for d in drift] for name in ("four_even", "one_even", "sync", "backup", "async")}
    assert ideals(speeds)["backup"] == pytest.approx([1.0, 1.0])
