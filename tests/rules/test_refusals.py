"""Tests of what is done about gradients with NaN or infinity."""

from __future__ import annotations

from dist_train.rules.decisions import Fail, Replace
from dist_train.rules.messages import Push, Version
from dist_train.rules.refusals import Refusals


def bad(member: int) -> Push:
    return Push(member, 0, 1, 1, Version(0, 4), 4, float("nan"), finite=False)


class TestRefusals:
    def test_three_in_a_row_from_a_run_of_one_fail_it_and_say_where(self) -> None:
        refusals = Refusals(1)
        assert [refusals.refused(bad(0), live=1, step=4) for _ in range(2)] == [[], []]
        (verdict,) = refusals.refused(bad(0), live=1, step=4)
        assert isinstance(verdict, Fail)
        assert "by step 4" in verdict.why

    def test_one_that_counts_begins_the_row_again(self) -> None:
        refusals = Refusals(1)
        for _ in range(4):
            assert refusals.refused(bad(0), 1, 4) == []
            assert refusals.refused(bad(0), 1, 4) == []
            refusals.counted(0)

    def test_a_lone_bad_member_is_replaced_while_the_others_go_on(self) -> None:
        refusals = Refusals(3)
        verdicts = []
        for _ in range(3):
            refusals.counted(1)
            verdicts += refusals.refused(bad(0), 3, 4)
        (verdict,) = verdicts
        assert isinstance(verdict, Replace)
        assert (verdict.member, verdict.incarnation) == (0, 0)

    def test_three_from_each_fail_the_run(self) -> None:
        refusals = Refusals(2)
        verdicts = [refusals.refused(bad(number % 2), 2, 4) for number in range(6)]
        assert [type(each) for each in verdicts[5]] == [Fail]

    def test_a_new_process_begins_with_a_clean_slate(self) -> None:
        refusals = Refusals(2)
        for _ in range(2):
            refusals.refused(bad(0), 2, 4)
        refusals.counted(1)
        refusals.forgive(0)
        assert refusals.refused(bad(0), 2, 4) == []
