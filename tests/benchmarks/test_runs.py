"""The speed of a run, from the lines it wrote."""

import pytest

from benchmarks.runs import steady_speed


def lines(*pairs):
    return [{"kind": "train", "samples": samples, "wall_s": wall_s} for samples, wall_s in pairs]


def test_the_start_does_not_count():
    run = lines((10, 100.0), (20, 101.0), (40, 102.0), (60, 103.0), (80, 104.0), (100, 105.0))
    assert steady_speed(run) == pytest.approx(20.0)


def test_validation_lines_are_not_training():
    run = lines((10, 1.0), (20, 2.0), (30, 3.0))
    assert steady_speed([*run, {"kind": "val", "samples": 30, "wall_s": 90.0}]) == pytest.approx(10.0)


def test_one_line_has_no_speed():
    with pytest.raises(ValueError, match="there are 1"):
        steady_speed(lines((10, 1.0)))
