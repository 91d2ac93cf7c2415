"""Which steps of training a checkpoint is blamed for."""

import pytest

from benchmarks.checkpoints import Step, costs
from benchmarks.step_time import WARMUP


def steps(*seconds):
    numbers = range(WARMUP + 1, WARMUP + 1 + len(seconds))
    return [Step(number, float(at), s) for at, (number, s) in enumerate(zip(numbers, seconds, strict=True))]


def save(step, start, seconds, stall_s=0.1):
    return {"step": step, "time": start + seconds, "seconds": seconds, "stall_s": stall_s}


def test_a_step_is_saving_when_the_copy_follows_it_and_in_flight_while_the_disk_works():
    taken = steps(0.5, 0.5, 0.9, 0.7, 0.6, 0.5)
    result = costs(taken, [save(WARMUP - 5, -99.0, 1.0), save(WARMUP + 3, 2.95, 1.5)])
    assert result["seconds"] == {
        "quiet": [0.5, 0.5, 0.5],
        "saving": [0.9],
        "in_flight": [0.7, 0.6],
        "saving_first": [],
    }


def test_the_first_save_counts_on_its_own():
    result = costs(steps(0.5, 0.9, 0.5), [save(WARMUP + 2, 1.9, 0.01)])
    assert result["seconds"]["saving_first"] == [0.9]
    assert result["seconds"]["saving"] == []


def test_stall_and_writing_are_told_in_quiet_steps():
    result = costs(steps(0.5, 0.5, 0.9), [save(WARMUP + 3, 2.95, 1.5, stall_s=0.25)])
    assert result["stall_in_steps"] == pytest.approx([0.5])
    assert result["writing_in_steps"] == pytest.approx([3.0])


def test_steps_that_warm_up_do_not_count():
    early = [Step(number, 0.0, 9.0) for number in range(1, WARMUP + 1)]
    assert costs([*early, *steps(0.5, 0.5)], [])["seconds"]["quiet"] == [0.5, 0.5]
