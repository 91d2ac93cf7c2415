"""Tests of the arithmetic of a run through a parameter server."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dist_train.rules.admission import Contribution, Rule
from dist_train.rules.dealing import Deck
from dist_train.rules.messages import Lease, Push, Version
from dist_train.rules.sampling import Position
from dist_train.rules.schedule import Scheduled
from dist_train.rules.terms import Terms
from dist_train.rules.timetable import Due, Timetable

TERMS = Terms(
    Rule(2),
    Deck(size=40, batch=8, parts=2),
    Timetable(log_steps=3, validate_epochs=2, validate_steps=None, checkpoint_steps=4),
    40,
    lambda samples: Scheduled(0.1 - samples / 1000, 0.9, 0.5),
    lambda updates, samples, at: updates >= 9,
)


def stale(staleness: int, samples: int = 4) -> Contribution:
    return Contribution(Push(0, 0, 1, 1, Version(0, 0), samples, 1.0), staleness)


class TestMadeWith:
    def test_is_that_of_the_samples_trained_before(self) -> None:
        assert TERMS.made_with(20, [stale(3)]) == Scheduled(pytest.approx(0.08), 0.9, 0.5)

    def test_of_damped_gradients_is_whole_as_they_are_damped_themselves(self) -> None:
        damped = replace(TERMS, inverse=True)
        assert damped.made_with(0, [stale(1), stale(4)]) == TERMS.made_with(0, [stale(0)])

    def test_that_has_a_damped_gradient_s_size_where_the_optimizer_loses_it(self) -> None:
        """Zhang et al. 2015: alpha0 / tau for each gradient of a mean over three."""
        damped = replace(TERMS, inverse=True, normalises=True)
        made = damped.made_with(0, [stale(1), stale(2), stale(4)])
        assert made.rate == pytest.approx(0.1 * (1 + 1 / 2 + 1 / 4) / 3)
        assert damped.made_with(0, [stale(0), stale(1)]) == Scheduled(pytest.approx(0.1), 0.9, 0.5)

    @pytest.mark.parametrize("normalises", [False, True])
    def test_plain_sgd_then_moves_by_each_gradient_at_its_own_rate(self, normalises: bool) -> None:
        damped, pushed = replace(TERMS, inverse=True, normalises=normalises), [stale(1, 2), stale(3, 6)]
        taken = [damped.take(each, Rule(2)) for each in pushed]
        summed = sum(t.weight * t.scale * g for t, g in zip(taken, [5.0, -7.0], strict=True))
        move = damped.made_with(0, pushed).rate * summed / sum(t.weight for t in taken)
        assert move == pytest.approx((0.1 * 5.0 * 2 + 0.1 / 3 * -7.0 * 6) / 8)

    def test_an_outer_optimizer_has_its_own(self) -> None:
        assert replace(TERMS, outer_rate=0.7).made_with(20, [stale(2)]) == Scheduled(0.7)


class TestWork:
    def test_a_member_that_makes_no_steps_is_not_told_how(self) -> None:
        assert TERMS.work(Lease(1, 0, 0, 4), 0).own == ()

    def test_its_own_steps_follow_the_schedule_over_the_update(self) -> None:
        local = replace(TERMS, own_steps=4, outer_rate=0.7)
        own = local.work(Lease(1, 0, 0, 4), 16).own
        assert own == tuple(Scheduled(pytest.approx(rate), 0.9, 0.5) for rate in (0.084, 0.082, 0.08, 0.078))

    @pytest.mark.parametrize(("count", "shares"), [(4, [2 / 8, 2 / 8]), (3, [2 / 6, 1 / 6]), (1, [1 / 2])])
    def test_without_an_outer_optimizer_a_step_is_its_samples_share_of_an_update(
        self, count: int, shares: list[float]
    ) -> None:
        """So far the server moves by the same gradient: two leases make an update. It is plain descent."""
        terms = replace(TERMS, own_steps=2)
        expected = [share * (0.1 - 20 / 1000) for share in shares]
        own = terms.work(Lease(1, 0, 0, count), 20).own
        assert own == tuple(Scheduled(pytest.approx(rate)) for rate in expected)


class TestDue:
    def test_logs_and_checkpoints_follow_the_updates(self) -> None:
        assert TERMS.due(12, 80, 88, ends=False) == Due(log=True, validation=False, checkpoint=True)

    @pytest.mark.parametrize(
        ("before", "after", "validated"), [(72, 80, True), (79, 87, True), (80, 88, False), (32, 40, False)]
    )
    def test_a_validation_comes_when_the_samples_of_its_epochs_add_up(
        self, before: int, after: int, validated: bool
    ) -> None:
        assert TERMS.due(1, before, after, ends=False).validation == validated

    @pytest.mark.parametrize(
        ("before", "after", "validated"), [(70, 125, True), (30, 115, True), (85, 125, False)]
    )
    def test_one_that_ends_several_epochs_misses_none_that_is_validated(
        self, before: int, after: int, validated: bool
    ) -> None:
        assert TERMS.due(1, before, after, ends=False).validation == validated

    def test_all_is_due_at_the_end(self) -> None:
        assert TERMS.due(1, 0, 8, ends=True) == Due(True, True, True)


class TestEnd:
    def test_a_length_in_updates_ends_training_wherever_the_data_stand(self) -> None:
        assert not TERMS.ends_at(8)
        assert TERMS.ends_at(9)
        assert TERMS.finished(9, 0, Position(0, 0))


class TestTake:
    def test_says_whether_it_is_the_only_one_of_its_update(self) -> None:
        assert TERMS.take(stale(2), Rule(1)).alone
        assert not TERMS.take(stale(2), Rule(2)).alone

    @pytest.mark.parametrize(
        ("terms", "weight", "scale"),
        [
            (TERMS, 6, 1),
            (replace(TERMS, inverse=True), 6, 0.5),
            (replace(TERMS, inverse=True, normalises=True), 3, 1),
        ],
    )
    def test_weighs_by_samples_and_damps_by_staleness(
        self, terms: Terms, weight: float, scale: float
    ) -> None:
        taken = terms.take(stale(2, 6), Rule(2))
        assert (taken.weight, taken.scale) == (weight, scale)

    def test_a_fresh_gradient_is_not_damped(self) -> None:
        assert replace(TERMS, inverse=True).take(stale(0), Rule(1)).scale == 1.0
