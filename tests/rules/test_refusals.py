"""Tests of what is done about gradients with NaN or infinity."""

from __future__ import annotations

from dist_train.rules.decisions import Fail, Replace
from dist_train.rules.messages import Lease, Push, Version
from dist_train.rules.refusals import Refusals


def bad(member: int, lease: int = 1) -> Push:
    return Push(member, 0, 1, lease, Version(0, 4), 4, float("nan"), finite=False)


def good(member: int, lease: int = 9) -> Push:
    return Push(member, 0, 1, lease, Version(0, 4), 4, 1.0)


def lease(number: int = 1) -> Lease:
    return Lease(number, 2, 4 * number, 4)


class TestRefusals:
    def test_three_in_a_row_from_a_run_of_one_fail_it_and_say_where(self) -> None:
        refusals = Refusals(1)
        assert [refusals.refused(bad(0), lease(), live=1, step=4) for _ in range(2)] == [[], []]
        (verdict,) = refusals.refused(bad(0), lease(), live=1, step=4)
        assert isinstance(verdict, Fail)
        assert "by step 4" in verdict.why

    def test_one_that_counts_begins_the_row_again(self) -> None:
        refusals = Refusals(1)
        for _ in range(4):
            assert refusals.refused(bad(0), lease(), 1, 4) == []
            assert refusals.refused(bad(0), lease(), 1, 4) == []
            refusals.counted(good(0))

    def test_a_lone_bad_member_is_replaced_while_the_others_go_on(self) -> None:
        refusals = Refusals(3)
        verdicts = []
        for _ in range(3):
            refusals.counted(good(1))
            verdicts += refusals.refused(bad(0), lease(), 3, 4)
        (verdict,) = verdicts
        assert isinstance(verdict, Replace)
        assert (verdict.member, verdict.incarnation) == (0, 0)

    def test_three_from_each_fail_the_run(self) -> None:
        refusals = Refusals(2)
        verdicts = [refusals.refused(bad(number % 2, number), lease(number), 2, 4) for number in range(6)]
        assert [type(each) for each in verdicts[5]] == [Fail]

    def test_a_new_process_begins_with_a_clean_slate(self) -> None:
        refusals = Refusals(2)
        for _ in range(2):
            refusals.refused(bad(0), lease(), 2, 4)
        refusals.counted(good(1))
        refusals.forgive(0)
        assert refusals.refused(bad(0), lease(), 2, 4) == []

    def test_samples_that_fail_with_everybody_cost_nobody_its_place_and_fail_the_run_by_name(self) -> None:
        refusals, verdicts = Refusals(4), []
        for number in range(6):
            refusals.counted(good((number + 1) % 4))
            verdicts.append(refusals.refused(bad(number % 4, 3), lease(3), 4, 7))
        assert verdicts[:5] == [[]] * 5
        (verdict,) = verdicts[5]
        assert isinstance(verdict, Fail)
        assert verdict.why.startswith("samples 12 to 15 in the order of epoch 2 gave a gradient with NaN")

    def test_samples_that_count_in_the_end_are_not_blamed(self) -> None:
        refusals = Refusals(2)
        for number in range(20):
            refusals.counted(good((number + 1) % 2))
            assert refusals.refused(bad(number % 2, 3), lease(3), 2, 7) == []
            if number % 4 == 3:
                refusals.counted(good(0, 3))

    def test_the_last_samples_of_all_are_blamed_though_nothing_counts_any_more(self) -> None:
        refusals = Refusals(2)
        assert refusals.refused(bad(0, 3), lease(3), 2, 7) == []
        refusals.counted(good(1))
        verdicts = [refusals.refused(bad(number % 2, 3), lease(3), 2, 7) for number in range(1, 7)]
        (verdict,) = next(each for each in verdicts if each)
        assert isinstance(verdict, Fail)
        assert verdict.why.startswith("samples 12 to 15")

    def test_several_bad_leases_that_are_all_that_is_left_are_blamed_as_well(self) -> None:
        refusals = Refusals(2)
        for member, number in ((0, 3), (1, 4)):
            assert refusals.refused(bad(member, number), lease(number), 2, 7) == []
        refusals.counted(good(0))
        turns = [(0, 4), (1, 3), (0, 3), (1, 4), (0, 4), (1, 3)]
        verdicts = [refusals.refused(bad(member, number), lease(number), 2, 7) for member, number in turns]
        assert verdicts[:5] == [[]] * 5
        (verdict,) = verdicts[5]
        assert isinstance(verdict, Fail)
        assert verdict.why.startswith("samples 12 to 15")

    def test_leases_that_change_hands_while_nothing_counts_are_no_fault_of_theirs(self) -> None:
        refusals = Refusals(2)
        refusals.counted(good(0))
        # Each of two leases is refused with either member in turn.
        turns = [(0, 3), (1, 4), (0, 4), (1, 3), (0, 3), (1, 4)]
        verdicts = [refusals.refused(bad(member, number), lease(number), 2, 7) for member, number in turns]
        (verdict,) = verdicts[-1]
        assert isinstance(verdict, Fail)
        assert "lower optimizer.lr" in verdict.why
