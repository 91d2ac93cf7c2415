from dataclasses import replace

import pytest

from dist_train.rules.straggler import StepTimes, Straggler, Streaks, straggler

USUAL = StepTimes(data=0.010, forward=0.030, backward=0.050, communication=0.020, update=0.010)


def test_a_worker_that_loses_time_in_one_phase_is_named_with_that_phase():
    times = [USUAL, USUAL, replace(USUAL, data=0.060), USUAL]
    assert straggler(times, ratio=1.3) == Straggler(rank=2, phase="data", ratio=pytest.approx(1.5))


@pytest.mark.parametrize("phase", ["data", "forward", "backward", "update"])
def test_the_phase_is_the_one_with_the_largest_excess_not_the_longest(phase):
    slow = replace(USUAL, **{phase: getattr(USUAL, phase) + 0.025})
    found = straggler([slow, USUAL, USUAL], ratio=1.2)
    assert found is not None
    assert found.phase == phase


def test_of_two_workers_the_slower_one_is_compared_with_the_other():
    slow = replace(USUAL, backward=0.090)
    assert straggler([USUAL, slow], ratio=1.3) == Straggler(1, "backward", pytest.approx(1.4))
    assert straggler([USUAL, slow], ratio=1.5) is None


def test_waiting_in_communication_is_not_slowness():
    waiting = replace(USUAL, communication=9.0)
    assert straggler([USUAL, waiting, USUAL], ratio=1.3) is None


def test_the_slowest_of_several_slow_workers_is_named():
    slow, slower = replace(USUAL, forward=0.100), replace(USUAL, forward=0.200)
    found = straggler([USUAL, slow, slower, USUAL, USUAL], ratio=1.3)
    assert found is not None
    assert found.rank == 2


def test_an_excess_below_the_least_raises_no_alarm():
    quick = StepTimes(data=0.0, forward=0.0002, backward=0.0002, communication=0.0, update=0.0)
    slow = replace(quick, forward=0.0009)
    assert straggler([quick, slow, quick], ratio=1.3) is None
    assert straggler([quick, slow, quick], ratio=1.3, least_s=0.0005) is not None


def test_exactly_the_ratio_is_not_yet_too_slow():
    one, double = StepTimes(0, 1, 0, 0, 0), StepTimes(0, 2, 0, 0, 0)
    assert straggler([one, one, double], ratio=2.0) is None
    assert straggler([one, one, double], ratio=1.99) is not None


def test_there_is_no_straggler_without_others_or_without_measurements():
    nothing = StepTimes(0, 0, 0, 0, 0)
    assert straggler([], ratio=1.3) is None
    assert straggler([USUAL], ratio=1.3) is None
    assert straggler([nothing, nothing], ratio=1.3) is None


def test_only_a_worker_that_stays_slow_is_told_and_only_once() -> None:
    slow, other, streaks = Straggler(1, "data", 2.0), Straggler(0, "data", 2.0), Streaks(length=3)
    found = [slow, slow, None, slow, slow, slow, slow, other, other, other]
    told = [streaks.after(one) for one in found]
    assert told == [None, None, None, None, None, slow, None, None, None, other]
