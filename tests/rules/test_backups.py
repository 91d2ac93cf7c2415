"""Tests of the choice of backup workers, with times whose outcome is known by hand or by another program."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Sequence
from fractions import Fraction
from random import Random

import pytest

from dist_train.rules.backups import Choice, choose, completions

# One of five takes 0.3 s longer, in every round.
STRAGGLER = [[1.0, 1.0, 1.3, 1.0, 1.0]] * 2


def speedups(rounds: list[list[float]]) -> list[float]:
    return [candidate.speedup for candidate in choose(rounds).table]


def lognormal(chance: Random, workers: int, rounds: int, sigma: float = 0.5) -> list[list[float]]:
    return [[math.exp(sigma * chance.gauss(0, 1)) for _ in range(workers)] for _ in range(rounds)]


def one_after_another(rounds: Sequence[Sequence[float]], quorum: int, between_s: float) -> list[float]:
    """Return when each update is there, from a list of what happens next: the same in another way."""
    coming = [(seconds, worker, 0) for worker, seconds in enumerate(rounds[0])]
    heapq.heapify(coming)
    ends: list[float] = []
    waiting: list[int] = []
    for update in range(len(rounds)):
        while len(waiting) < quorum:
            now, worker, begun_for = heapq.heappop(coming)
            if begun_for == update:
                waiting.append(worker)
            else:
                heapq.heappush(coming, (now + rounds[update][worker], worker, update))
        ends.append(now + between_s)
        # Who is late with something older while the update is being made waits for it like the others.
        while coming and coming[0][0] <= ends[-1]:
            waiting.append(heapq.heappop(coming)[1])
        if update + 1 < len(rounds):
            for worker in waiting:
                heapq.heappush(coming, (ends[-1] + rounds[update + 1][worker], worker, update + 1))
        waiting = []
    return ends


class TestUpdates:
    def test_take_the_first_gradients_and_the_late_one_misses_the_next_as_well(self) -> None:
        # The third takes until 5 for the first update; until then there are two more.
        rounds = [[1.0, 2.0, 5.0], [1.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 2.0, 0.5]]
        assert list(completions(rounds, quorum=2)) == [2.0, 3.0, 5.0, 6.0]

    def test_take_a_gradient_of_one_who_was_late_and_began_anew_in_time(self) -> None:
        rounds = [[1.0, 1.0, 1.5], [4.0, 1.0, 1.0]]
        assert list(completions(rounds, quorum=2)) == [1.0, 2.5]

    def test_begin_when_the_one_before_is_published(self) -> None:
        rounds = [[1.0, 1.25], [1.0, 1.0]]
        assert list(completions(rounds, quorum=1, between_s=0.5)) == [1.5, 3.0]

    @pytest.mark.parametrize("between_s", [0.0, 0.3])
    @pytest.mark.parametrize("quorum", range(1, 7))
    def test_of_random_times_are_there_when_events_in_order_have_them(
        self, quorum: int, between_s: float
    ) -> None:
        rounds = lognormal(Random(quorum), 6, 200)
        found = list(completions(rounds, quorum, between_s))
        assert found == pytest.approx(one_after_another(rounds, quorum, between_s))


class TestChoice:
    def test_one_straggler_is_worth_one_backup(self) -> None:
        choice = choose(STRAGGLER)
        assert choice.backups == 1
        # Four gradients in 1 s instead of five in 1.3 s.
        assert choice.table[1].speedup == pytest.approx(Fraction(4, 5) * Fraction(13, 10))
        assert [candidate.step_s for candidate in choice.table] == pytest.approx([1.3, 1, 1, 1, 1])

    def test_one_of_five_that_is_five_times_slower_is_worth_exactly_one(self) -> None:
        choice = choose([[1.0, 1.0, 1.0, 1.0, 5.0]])
        assert choice.backups == 1
        assert choice.table[1].speedup == pytest.approx(4)

    def test_even_workers_are_worth_none(self) -> None:
        assert speedups([[2.0] * 4] * 3) == pytest.approx([1.0, 0.75, 0.5, 0.25])
        assert choose([[2.0] * 4] * 3).backups == 0

    def test_of_two_equally_good_the_smaller_is_taken(self) -> None:
        # 2 gradients in 2 s, or 1 in 1 s.
        assert choose([[1.0, 2.0]]).backups == 0

    @pytest.mark.parametrize(("slowest", "backups"), [(1.27, 0), (1.28, 1)])
    def test_a_gain_of_two_percent_is_noise(self, slowest: float, backups: int) -> None:
        assert choose([[1.0, 1.0, 1.0, 1.0, slowest]]).backups == backups

    def test_without_backups_it_predicts_what_was_measured(self) -> None:
        rounds = lognormal(Random(1), 5, 20)
        slowest = math.fsum(map(max, rounds)) / 20
        assert choose(rounds).table[0].step_s == pytest.approx(slowest)
        assert choose(rounds, between_s=0.25).table[0].step_s == pytest.approx(slowest + 0.25)

    def test_all_slow_in_the_same_round_are_no_case_for_backups(self) -> None:
        assert choose([[1.0] * 8] * 19 + [[9.0] * 8]).backups == 0

    def test_what_an_update_costs_in_any_case_makes_backups_worth_less(self) -> None:
        rounds = [[1.0, 1.0, 1.0, 1.0, 1.3]]
        assert (choose(rounds).backups, choose(rounds, between_s=1.0).backups) == (1, 0)

    def test_eight_workers_with_lognormal_times_are_worth_one(self) -> None:
        """Ten percent for b = 1, where the order statistic promises 25 for b = 2."""
        choice = choose(lognormal(Random(0), 8, 4000))
        assert choice.backups == 1
        assert [candidate.speedup for candidate in choice.table[:4]] == pytest.approx(
            [1, 1.10, 1.08, 1.0], abs=0.02
        )

    def test_no_more_are_chosen_than_are_allowed(self) -> None:
        rounds = [[1.0, 1.0, 9.0, 9.0]]
        assert choose(rounds).backups == 2
        assert choose(rounds, most=1).backups == 0
        assert len(choose(rounds, most=1).table) == 2
        assert len(choose(rounds, most=9).table) == 4

    def test_one_worker_has_no_choice(self) -> None:
        assert choose([[1.0]]).backups == 0


class TestReason:
    def test_says_what_a_backup_brings(self) -> None:
        assert choose(STRAGGLER).why == (
            "b = 1 should make 4% more samples per second than b = 0: an update takes 1 s instead of 1.3 s"
        )

    def test_says_what_the_next_best_would_cost_or_bring(self) -> None:
        assert choose([[2.0] * 4]).why == (
            "b = 0: waiting for all 4 pays; b = 1 should make 25% fewer samples per second"
        )
        assert choose([[1.0, 1.0, 1.0, 1.0, 1.265]]).why == (
            "b = 0: waiting for all 5 pays; b = 1 should make only 1% more samples per second"
        )

    def test_says_when_there_is_nothing_to_compare(self) -> None:
        assert choose([[1.0]]).why == "b = 0: there is one worker, and nobody to back it up"
        assert choose([[1.0, 2.0]], most=0).why == "b = 0: no backups are allowed"


class TestRecord:
    def test_is_json_with_the_whole_table(self) -> None:
        record = json.loads(json.dumps(choose([[1.0, 3.0]]).record()))
        assert record["chosen"] == 1
        assert record["table"] == [
            {"backups": 0, "step_s": 3.0, "speedup": 1.0},
            {"backups": 1, "step_s": 1.0, "speedup": 1.5},
        ]

    def test_is_read_again(self) -> None:
        choice = choose([[1.0, 2.0, 4.0]])
        assert Choice.from_record(json.loads(json.dumps(choice.record()))).record() == choice.record()


class TestRefusals:
    @pytest.mark.parametrize("rounds", [[], [[]], [[1.0], [1.0, 2.0]]])
    def test_rows_must_be_of_one_length(self, rounds: list[list[float]]) -> None:
        with pytest.raises(ValueError, match="of one length"):
            choose(rounds)

    @pytest.mark.parametrize("seconds", [-1.0, 0.0, math.nan, math.inf])
    def test_times_must_be_times(self, seconds: float) -> None:
        with pytest.raises(ValueError, match="seconds above 0"):
            choose([[seconds, 1.0]])
