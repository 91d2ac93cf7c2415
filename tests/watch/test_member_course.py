"""Tests of one member's figures."""

from __future__ import annotations

from dist_train.rules.straggler import StepTimes
from dist_train.watch.member_course import MemberCourse

TIMES = StepTimes(data=0.1, forward=0.2, backward=0.3, communication=0.0, update=0.1)


def rate(member: MemberCourse, now: float) -> float:
    return member.figures(now, window_s=10.0).samples_per_s


class TestRate:
    def test_is_the_samples_of_its_gradients_over_the_time_they_took(self) -> None:
        member = MemberCourse("3", start=100.0)
        member.pushed(32, TIMES, now=102.0)
        member.pushed(32, TIMES, now=104.0)
        # What it has done since its last push will count with the next.
        assert rate(member, now=105.5) == 16.0
        member.pushed(32, TIMES, now=106.0)
        assert rate(member, now=107.0) == 16.0

    def test_falls_while_the_member_is_silent(self) -> None:
        member = MemberCourse("3", start=0.0)
        member.pushed(32, TIMES, now=2.0)
        assert [rate(member, now) for now in (2.0, 3.0, 4.0, 10.0)] == [16.0, 16.0, 16.0, 4.0]

    def test_of_a_slow_member_is_that_of_its_last_gradient_until_then(self) -> None:
        member = MemberCourse("3", start=0.0)
        for now in (10.0, 20.0):
            member.pushed(40, TIMES, now)
            assert [rate(member, now + late) for late in (0.0, 4.0, 8.0)] == [4.0, 4.0, 4.0]

    def test_is_zero_before_the_first_gradient(self) -> None:
        assert rate(MemberCourse("3", start=0.0), now=5.0) == 0.0


class TestWindow:
    def test_waiting_is_a_share_of_the_window_and_staleness_its_mean(self) -> None:
        member = MemberCourse("6-7", start=0.0)
        member.waiting_s = 2.5
        member.staleness.add(1)
        member.staleness.add(4)
        member.dropped = 2
        figures = member.figures(10.0, window_s=10.0)
        assert (figures.name, figures.waiting, figures.staleness, figures.dropped) == ("6-7", 0.25, 2.5, 2)

    def test_the_next_begins_anew_but_drops_add_up(self) -> None:
        member = MemberCourse("3", start=0.0)
        member.waiting_s, member.dropped = 2.5, 2
        member.staleness.add(4)
        member.figures(10.0, window_s=10.0)
        member.staleness.add(1)
        figures = member.figures(20.0, window_s=10.0)
        assert (figures.waiting, figures.staleness, figures.dropped) == (0.0, 1.0, 2)

    def test_without_a_gradient_the_staleness_is_the_last_one(self) -> None:
        member = MemberCourse("3", start=0.0)
        member.staleness.add(4)
        member.figures(10.0, window_s=10.0)
        assert member.figures(20.0, window_s=10.0).staleness == 4.0

    def test_nobody_waits_longer_than_the_window(self) -> None:
        member = MemberCourse("3", start=0.0)
        member.waiting_s = 30.0
        assert member.figures(10.0, window_s=10.0).waiting == 1.0
